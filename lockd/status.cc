// SPDX-License-Identifier: Apache-2.0
#include "lockd/status.h"

#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <nlohmann/json.hpp>

namespace distfuse::lockd {

namespace {

using nlohmann::json;

constexpr std::size_t kMaxContendedShown = 256;

std::uint64_t load(const df_u64& word) {
  return std::atomic_ref<df_u64>(const_cast<df_u64&>(word)).load(std::memory_order_relaxed);
}

std::uint64_t left(const Daemon& daemon, Milliseconds at) {
  return at > daemon.now() ? at - daemon.now() : 0;
}

json session_json(const Daemon& daemon, const Session& session) {
  json shown{{"session", session.id},
             {"name", session.name},
             {"node", session.node},
             {"peer", session.peer},
             {"state", to_string(session.state)},
             {"lanes", session.lanes.size()},
             {"requests", daemon.requests(session)},
             {"file_locks", daemon.file_locks().session_locks(session.id)}};
  if (session.state == SessionState::fencing || session.state == SessionState::waiting)
    shown["free_in_ms"] = left(daemon, session.free_at);
  else if (session.deadline != kNever)
    shown["lease_left_ms"] = left(daemon, session.deadline);
  if (session.state == SessionState::reclaiming) shown["reclaimed"] = session.reclaimed;
  return shown;
}

/// Normal; or who is awaited for how long.
void add_phase(json& status, const Daemon& daemon) {
  switch (daemon.phase()) {
    case Daemon::Phase::normal:
      status["phase"] = "normal";
      return;
    case Daemon::Phase::grace:
      status["phase"] = "grace";
      status["grace_left_ms"] = daemon.grace_left();
      break;
    case Daemon::Phase::resuming:
      status["phase"] = "resuming";
      break;
  }
  auto missing = json::array();
  for (const auto& [id, session] : daemon.sessions().all())
    if (session.state != SessionState::live && !session.reclaimed)
      missing.push_back({{"session", id}, {"name", session.name}});
  status["missing"] = std::move(missing);
}

json contended_json(const Daemon& daemon, std::uint32_t slot, std::uint64_t key,
                    std::uint64_t word) {
  json found{{"slot", slot},           {"inode", df_key_split_inode(key)},
             {"is", df_word_is(word)}, {"ix", df_word_ix(word)},
             {"s", df_word_s(word)},   {"owner", df_word_owner(word)}};
  const auto [nodes, waiting] = daemon.waiters(slot);
  found["waiting"] = waiting;
  found["waiters"] = nodes;
  std::uint32_t extent = 0;
  if (df_key_split_extent(key, &extent) != 0) found["extent"] = extent;
  return found;
}

/// The table's part: how full it is, what is held in which mode, which slots are contended.
void add_table(json& status, const Daemon& daemon, std::span<std::byte> table) {
  const auto& geometry = daemon.options().table;
  const auto* slots = reinterpret_cast<const df_slot*>(table.data());
  const auto primary = geometry.buckets * DF_BUCKET_SLOTS;
  const auto total = df_table_slots(&geometry);
  std::uint64_t used = 0, overflow = 0, is = 0, ix = 0, s = 0, x = 0, contended = 0;
  auto shown = json::array();
  for (std::uint32_t i = 0; i < total; ++i) {
    const auto key = load(slots[i].key);
    if (key == 0) continue;
    ++(i < primary ? used : overflow);
    const auto word = load(slots[i].word);
    is += df_word_is(word);
    ix += df_word_ix(word);
    s += df_word_s(word);
    x += df_word_owner(word) != 0 ? 1 : 0;
    if (df_word_contended(word) == 0) continue;
    if (++contended <= kMaxContendedShown) shown.push_back(contended_json(daemon, i, key, word));
  }
  status["slots_total"] = total;
  status["slots_used"] = used + overflow;
  status["overflow_total"] = geometry.overflow;
  status["overflow_used"] = overflow;
  status["held"] = {{"is", is}, {"ix", ix}, {"s", s}, {"x", x}};
  status["contended"] = contended;
  status["contended_slots"] = std::move(shown);
}

json by_type(const std::array<std::uint64_t, DF_MSG_TYPES>& counts) {
  auto out = json::object();
  for (std::uint32_t type = 0; type < counts.size(); ++type)
    if (counts[type] != 0) out[df_msg_name(type)] = counts[type];
  return out;
}

json counters_json(const Daemon& daemon, const ServiceStatus& service) {
  const auto& counters = daemon.counters();
  const auto locks = daemon.lock_counters();
  return {{"messages", counters.messages},
          {"received", by_type(counters.received)},
          {"sent", by_type(counters.sent)},
          {"malformed", counters.malformed},
          {"refused", counters.refused},
          {"byes", counters.byes},
          {"lost", counters.lost},
          {"expired", counters.expired},
          {"reclaimed", counters.reclaimed},
          {"asks", locks.asks},
          {"grants", locks.grants},
          {"revokes", locks.revokes},
          {"finds", locks.finds},
          {"rekeys", locks.rekeys},
          {"glimpses", locks.glimpses},
          {"freezes", locks.freezes},
          {"repairs", locks.repairs},
          {"drops", locks.drops},
          {"wakeups", service.wakeups},
          {"chains", service.chains}};
}

std::uint64_t cpu_us() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto us = [](const timeval& t) {
    return static_cast<std::uint64_t>(t.tv_sec) * 1000000 + static_cast<std::uint64_t>(t.tv_usec);
  };
  return us(usage.ru_utime) + us(usage.ru_stime);
}

}  // namespace

std::uint64_t read_word(std::span<std::byte> table, std::uint32_t slot) {
  return load(reinterpret_cast<const df_slot*>(table.data())[slot].word);
}

std::string status_json(const Daemon& daemon, std::span<std::byte> table,
                        const ServiceStatus& service) {
  json status;
  status["address"] = service.address;
  status["fabric"] = service.fabric;
  status["incarnation"] = daemon.options().incarnation;
  status["pid"] = getpid();
  status["uptime_s"] = service.uptime.count();
  status["cpu_us"] = cpu_us();
  status["connections"] = service.connections;
  status["lease_ms"] = daemon.options().lease_ms;
  add_phase(status, daemon);
  auto sessions = json::array();
  for (const auto& [id, session] : daemon.sessions().all())
    sessions.push_back(session_json(daemon, session));
  status["sessions"] = std::move(sessions);
  add_table(status, daemon, table);
  const auto files = daemon.file_locks().counts();
  status["file_locks"] = {
      {"locks", files.locks}, {"waiters", files.waiters}, {"files", files.spaces}};
  const auto locks = daemon.lock_counters();
  status["contended_objects"] = locks.objects;
  status["waiters"] = locks.waiters;
  status["counters"] = counters_json(daemon, service);
  return status.dump();
}

}  // namespace distfuse::lockd
