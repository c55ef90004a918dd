// SPDX-License-Identifier: Apache-2.0
// The rare branches of the core and of its shells that a full run must have reached: what a simulation did not reach it did not check.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace distfuse::simulation {

// clang-format off
#define DISTFUSE_BRANCHES(BRANCH)                                                       \
  BRANCH(revoke_overtakes_take, "a Revoke before the take's completion was seen")       \
  BRANCH(revoke_overtakes_grant, "a Revoke right behind the Grant, before its user")    \
  BRANCH(undo_saw_contended, "an undo saw the contended bit that the take did not")     \
  BRANCH(waiters_queue_in_order, "Asks queued behind one another")                      \
  BRANCH(upgrade_in_place, "a lone S became X by one CAS")                              \
  BRANCH(upgrade_asked, "an upgrade that had to ask")                                   \
  BRANCH(second_upgrader_revoked, "a holder that waits for its upgrade was revoked")    \
  BRANCH(downgraded_to_shared, "X given up, S and pages kept")                          \
  BRANCH(guest_admitted, "page I/O under a lock that is being revoked")                 \
  BRANCH(hints_failed, "a Revoke to a session that held nothing")                       \
  BRANCH(rekeyed, "a slot got another key")                                             \
  BRANCH(rekeyed_under_take, "a take met another key and was undone")                   \
  BRANCH(find_asked, "a Find through lockd")                                            \
  BRANCH(overflow_assigned, "a slot of the overflow area")                              \
  BRANCH(claim_lost, "another client claimed the slot first")                           \
  BRANCH(lockd_busy, "lockd had no room: try again")                                    \
  BRANCH(frozen, "a slot was frozen for repair")                                        \
  BRANCH(freeze_parked, "a chain waited for Thaw")                                      \
  BRANCH(freeze_waited_for_chain, "State waited for a chain on its way")                \
  BRANCH(freeze_restarted, "a freeze began anew: a session died")                       \
  BRANCH(joined_during_freeze, "a session joined a frozen table")                       \
  BRANCH(owner_cleared, "a dead owner's X was taken off")                               \
  BRANCH(cancelled, "an Ask was taken back")                                            \
  BRANCH(grant_despite_cancel, "a Cancel crossed its Grant")                            \
  BRANCH(would_block, "a try failed")                                                   \
  BRANCH(glimpse_fresh, "a holder published for a Glimpse")                             \
  BRANCH(pages_kept, "old pages trusted again, the version had stayed")                 \
  BRANCH(pages_dropped, "old pages dropped, the version had changed")                   \
  BRANCH(lease_expired, "lockd lost a session by its lease")                            \
  BRANCH(suspect, "trust ran out")                                                      \
  BRANCH(trusted_again, "a late renewal made it live again")                            \
  BRANCH(trusted_while_connecting, "cached use without lockd, in the lease")            \
  BRANCH(cut_waits_for_lease, "locks of an ended connection waited for the lease")      \
  BRANCH(session_refused, "a session came back after its end")                          \
  BRANCH(session_given_up, "no lockd for too long")                                     \
  BRANCH(bye, "a mount ended in order")                                                 \
  BRANCH(lockd_restarted, "a new incarnation")                                          \
  BRANCH(reasserted, "a lock taken again in the new table")                             \
  BRANCH(reasserted_dirty, "with dirty pages below it")                                 \
  BRANCH(reassert_during_shed, "a shed was under way")                                  \
  BRANCH(detached_in_flight, "a chain was in flight when lockd went")                   \
  BRANCH(lockd_lost_in_grace, "lockd died again in its grace period")                   \
  BRANCH(grace_timed_out, "a listed session did not come")                              \
  BRANCH(file_lock_waited, "a file lock was waited for")                                \
  BRANCH(file_lock_reclaimed, "a file lock survived lockd")                              \
  BRANCH(file_lock_in_grace, "a file lock was refused in grace")                        \
  BRANCH(hello_in_grace, "a new session had to wait")                                   \
  BRANCH(forfeited, "a lock was not to be had again: a liar had it")                    \
  BRANCH(fence_waited, "a fence waited for a storaged that was away")                   \
  BRANCH(fence_waited_for_write, "a fence waited for a write on its way to disk")       \
  BRANCH(write_fenced, "a write of a fenced session was refused")                       \
  BRANCH(storaged_learning, "a request before storaged knew the sessions")              \
  BRANCH(storaged_lost_unsynced, "a storaged lost what was visible, not synced")        \
  BRANCH(flush_failed_over, "a write was sent again over a new connection")             \
  BRANCH(dirty_lost, "dirty pages of a lost session")                                   \
  BRANCH(error_at_fsync, "and their error at fsync")                                    \
  BRANCH(stalled_past_lease, "a client stood still for longer than its lease")          \
  BRANCH(partition_healed, "a partition ended before anybody noticed")
// clang-format on

enum class Branch : std::uint8_t {
#define BRANCH(name, text) name,
  DISTFUSE_BRANCHES(BRANCH)
#undef BRANCH
};

inline constexpr std::array kBranchNames = {
#define BRANCH(name, text) #name,
    DISTFUSE_BRANCHES(BRANCH)
#undef BRANCH
};
inline constexpr std::array kBranchTexts = {
#define BRANCH(name, text) text,
    DISTFUSE_BRANCHES(BRANCH)
#undef BRANCH
};
inline constexpr std::size_t kBranches = kBranchNames.size();
using BranchCounts = std::array<std::uint64_t, kBranches>;

}  // namespace distfuse::simulation
