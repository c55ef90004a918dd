// SPDX-License-Identifier: Apache-2.0
#include "lockd/file_locks.h"

#include <cerrno>
#include <cstdlib>
#include <limits>
#include <set>

namespace distfuse::lockd {

namespace {

constexpr std::uint64_t kEnd = std::numeric_limits<std::uint64_t>::max();

FileLockRequest normal(FileLockRequest request) {
  if (request.space.flock) {
    request.start = 0;
    request.end = kEnd;
  }
  return request;
}

bool overlap(std::uint64_t start, std::uint64_t end, const FileLockRequest& request) {
  return start <= request.end && request.start <= end;
}

}  // namespace

/// The first interval in the request's range that conflicts by type, else null. Of an owner other
/// than the request's.
const FileLocks::Intervals::value_type* FileLocks::conflict_with(const Intervals& held,
                                                                 const FileLockRequest& request) {
  auto it = held.upper_bound(request.start);
  if (it != held.begin()) --it;
  for (; it != held.end() && it->first <= request.end; ++it) {
    if (!overlap(it->first, it->second.end, request)) continue;
    if (request.type == FileLockType::write || it->second.type == FileLockType::write) return &*it;
  }
  return nullptr;
}

const FileLockOwner* FileLocks::conflict(const Space& space, const FileLockRequest& request) {
  for (const auto& [owner, held] : space.held)
    if (owner != request.owner && conflict_with(held, request) != nullptr) return &owner;
  return nullptr;
}

bool FileLocks::has_room(const FileLockRequest& request, std::size_t more) const {
  return locks_ + more <= limits_.locks_total &&
         session_locks(request.owner.session) + more <= limits_.locks_per_session;
}

void FileLocks::count(FileLockOwner owner, FileLockSpace space, std::ptrdiff_t locks,
                      std::ptrdiff_t waits) {
  const auto session = sessions_.try_emplace(owner.session).first;
  locks_ += static_cast<std::size_t>(locks);
  waiters_ += static_cast<std::size_t>(waits);
  session->second.locks += static_cast<std::size_t>(locks);
  const auto use = session->second.spaces.try_emplace(space, 0).first;
  use->second += static_cast<std::size_t>(locks + waits);
  if (use->second == 0) session->second.spaces.erase(use);
  if (session->second.spaces.empty()) sessions_.erase(session);
}

/// Cuts the request's range out of what its owner holds and, with `insert`, puts the request there,
/// merged with neighbours.
void FileLocks::replace(const FileLockRequest& request, bool insert) {
  auto& by_owner = spaces_[request.space].held;
  auto& held = by_owner[request.owner];
  const auto before = held.size();

  auto it = held.upper_bound(request.start);
  if (it != held.begin()) --it;
  while (it != held.end() && it->first <= request.end) {
    if (!overlap(it->first, it->second.end, request)) {
      ++it;
      continue;
    }
    const auto [start, old] = *it;
    it = held.erase(it);
    if (start < request.start) held.emplace(start, Interval{request.start - 1, old.type, old.pid});
    if (old.end > request.end) held.emplace(request.end + 1, old);
  }
  if (insert) {
    auto start = request.start;
    auto end = request.end;
    auto next = held.lower_bound(start);
    if (next != held.begin()) {
      const auto previous = std::prev(next);
      if (previous->second.type == request.type && previous->second.end + 1 == start) {
        start = previous->first;
        held.erase(previous);
      }
    }
    if (next != held.end() && end != kEnd && next->first == end + 1 &&
        next->second.type == request.type) {
      end = next->second.end;
      held.erase(next);
    }
    held.emplace(start, Interval{end, request.type, request.pid});
  }

  const auto grown = static_cast<std::ptrdiff_t>(held.size()) - static_cast<std::ptrdiff_t>(before);
  if (held.empty()) by_owner.erase(request.owner);
  if (grown != 0) count(request.owner, request.space, grown, 0);
}

void FileLocks::forget_if_empty(FileLockSpace space) {
  const auto it = spaces_.find(space);
  if (it != spaces_.end() && it->second.held.empty() && it->second.waiting.empty())
    spaces_.erase(it);
}

/// Depth first from the owners that block the request: does one of them wait, through others, for
/// the request's owner?
FileLocks::Search FileLocks::find_cycle(const FileLockRequest& request) const {
  std::set<FileLockOwner> seen;
  std::vector<const FileLockRequest*> open{&request};
  std::size_t steps = 0;
  while (!open.empty()) {
    const auto* waiting = open.back();
    open.pop_back();
    const auto space = spaces_.find(waiting->space);
    if (space == spaces_.end()) continue;
    for (const auto& [owner, held] : space->second.held) {
      if (++steps > limits_.search_steps) return Search::too_long;
      if (owner == waiting->owner || conflict_with(held, *waiting) == nullptr) continue;
      if (owner == request.owner) return Search::cycle;
      if (!seen.insert(owner).second) continue;
      const auto [first, last] = waiting_owners_.equal_range(owner);
      for (auto it = first; it != last; ++it) open.push_back(it->second);
    }
  }
  return Search::free;
}

int FileLocks::start_wait(const FileLockRequest& request, FileLockOwner blocker) {
  const auto session = sessions_.find(request.owner.session);
  if (waiters_ >= limits_.waiters_total) return ENOLCK;
  if (session != sessions_.end()) {
    if (session->second.waits.size() >= limits_.waiters_per_session) return ENOLCK;
    if (session->second.waits.contains(request.request)) return EINVAL;
  }
  if (!request.space.flock) {
    const auto found = find_cycle(request);
    if (found == Search::cycle) return EDEADLK;
    if (found == Search::too_long) return ENOLCK;
  }
  auto& waiting = spaces_[request.space].waiting;
  waiting.push_back(Waiter{request, blocker});
  if (!request.space.flock) waiting_owners_.emplace(request.owner, &waiting.back().request);
  count(request.owner, request.space, 0, 1);
  sessions_[request.owner.session].waits.emplace(request.request, request.space);
  return kWaiting;
}

void FileLocks::end_wait(Space& space, std::list<Waiter>::iterator waiter) {
  const auto& request = waiter->request;
  const auto [first, last] = waiting_owners_.equal_range(request.owner);
  for (auto it = first; it != last; ++it) {
    if (it->second != &request) continue;
    waiting_owners_.erase(it);
    break;
  }
  sessions_[request.owner.session].waits.erase(request.request);
  count(request.owner, request.space, 0, -1);
  space.waiting.erase(waiter);
}

/// After `changed` gave something up: grants, in order of arrival, what has become free. A grant to
/// an owner that held something can itself give up (a downgrade), so it goes on until a pass
/// changes nothing.
void FileLocks::wake(FileLockSpace key, std::set<FileLockOwner> changed,
                     std::vector<FileLockAnswer>& answers) {
  const auto found = spaces_.find(key);
  if (found == spaces_.end()) return;
  auto& space = found->second;
  for (bool again = true; again;) {
    again = false;
    for (auto it = space.waiting.begin(); it != space.waiting.end();) {
      const auto waiter = it++;
      if (!changed.contains(waiter->blocker)) continue;
      if (const auto* blocker = conflict(space, waiter->request)) {
        waiter->blocker = *blocker;
        continue;
      }
      const auto request = waiter->request;
      end_wait(space, waiter);
      const bool room = has_room(request, 2);
      if (room) {
        if (space.held.contains(request.owner)) {
          changed.insert(request.owner);
          again = true;
        }
        replace(request, true);
      }
      answers.push_back({request.owner.session, request.request, room ? 0 : ENOLCK, key.ino});
    }
  }
  forget_if_empty(key);
}

int FileLocks::take(const FileLockRequest& request, bool wait,
                    std::vector<FileLockAnswer>& answers) {
  if (const auto it = spaces_.find(request.space); it != spaces_.end()) {
    if (const auto* blocker = conflict(it->second, request))
      return wait ? start_wait(request, *blocker) : EAGAIN;
  }
  // The range may fall into the middle of one interval: that one becomes two, and the new one comes
  // on top.
  if (!has_room(request, 2)) return ENOLCK;
  replace(request, true);
  wake(request.space, {request.owner}, answers);
  return 0;
}

int FileLocks::take_flock(const FileLockRequest& request, bool wait,
                          std::vector<FileLockAnswer>& answers) {
  if (const auto space = spaces_.find(request.space); space != spaces_.end()) {
    const auto held = space->second.held.find(request.owner);
    if (held != space->second.held.end()) {
      if (held->second.begin()->second.type == request.type) return 0;
      replace(request, false);
      wake(request.space, {request.owner}, answers);
    }
  }
  return take(request, wait, answers);
}

int FileLocks::lock(const FileLockRequest& request, bool wait,
                    std::vector<FileLockAnswer>& answers) {
  const auto wanted = normal(request);
  if (wanted.start > wanted.end) return EINVAL;
  const int error =
      wanted.space.flock ? take_flock(wanted, wait, answers) : take(wanted, wait, answers);
  forget_if_empty(wanted.space);
  return error;
}

int FileLocks::unlock(const FileLockRequest& request, std::vector<FileLockAnswer>& answers) {
  const auto range = normal(request);
  if (range.start > range.end) return EINVAL;
  const auto space = spaces_.find(range.space);
  if (space == spaces_.end()) return 0;
  const auto held = space->second.held.find(range.owner);
  if (held == space->second.held.end()) return 0;
  auto it = held->second.upper_bound(range.start);
  if (it != held->second.begin()) {
    --it;
    const bool splits = it->first < range.start && it->second.end > range.end;
    if (splits && !has_room(range, 1)) return ENOLCK;
  }
  replace(range, false);
  wake(range.space, {range.owner}, answers);
  return 0;
}

std::optional<FileLockConflict> FileLocks::test(const FileLockRequest& request) const {
  const auto wanted = normal(request);
  const auto space = spaces_.find(wanted.space);
  if (space == spaces_.end()) return std::nullopt;
  std::optional<FileLockConflict> lowest;
  for (const auto& [owner, held] : space->second.held) {
    if (owner == wanted.owner) continue;
    const auto* found = conflict_with(held, wanted);
    if (found == nullptr || (lowest && lowest->start <= found->first)) continue;
    lowest = {owner, found->second.type, found->first, found->second.end, found->second.pid};
  }
  return lowest;
}

bool FileLocks::cancel(SessionId session, std::uint64_t request,
                       std::vector<FileLockAnswer>& answers) {
  const auto by_session = sessions_.find(session);
  if (by_session == sessions_.end()) return false;
  const auto wait = by_session->second.waits.find(request);
  if (wait == by_session->second.waits.end()) return false;
  const auto key = wait->second;
  auto& space = spaces_[key];
  auto it = space.waiting.begin();
  while (it != space.waiting.end() &&
         (it->request.owner.session != session || it->request.request != request))
    ++it;
  if (it == space.waiting.end()) std::abort();  // `waits` and `waiting` are changed together.
  end_wait(space, it);
  answers.push_back({session, request, EINTR, key.ino});
  forget_if_empty(key);
  return true;
}

void FileLocks::clear(FileLockSpace space, FileLockOwner owner) {
  FileLockRequest all;
  all.space = space;
  all.owner = owner;
  all.end = kEnd;
  replace(all, false);
}

void FileLocks::release_owner(FileLockSpace space, FileLockOwner owner,
                              std::vector<FileLockAnswer>& answers) {
  const auto it = spaces_.find(space);
  if (it == spaces_.end() || !it->second.held.contains(owner)) return;
  clear(space, owner);
  wake(space, {owner}, answers);
}

void FileLocks::release_session(SessionId session, std::vector<FileLockAnswer>& answers) {
  std::vector<FileLockSpace> touched;
  if (const auto it = sessions_.find(session); it != sessions_.end())
    for (const auto& [space, uses] : it->second.spaces) touched.push_back(space);
  for (const auto key : touched) {
    auto& space = spaces_[key];
    for (auto it = space.waiting.begin(); it != space.waiting.end();) {
      const auto waiter = it++;
      if (waiter->request.owner.session == session) end_wait(space, waiter);
    }
    std::set<FileLockOwner> owners;
    for (auto it = space.held.lower_bound({session, 0});
         it != space.held.end() && it->first.session == session; ++it)
      owners.insert(it->first);
    for (const auto& owner : owners) clear(key, owner);
    wake(key, std::move(owners), answers);
  }
}

FileLockCounts FileLocks::counts() const {
  return {locks_, waiters_, spaces_.size()};
}

std::size_t FileLocks::session_locks(SessionId session) const {
  const auto it = sessions_.find(session);
  return it == sessions_.end() ? 0 : it->second.locks;
}

std::size_t FileLocks::session_waits(SessionId session) const {
  const auto it = sessions_.find(session);
  return it == sessions_.end() ? 0 : it->second.waits.size();
}

}  // namespace distfuse::lockd
