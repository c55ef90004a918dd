// SPDX-License-Identifier: Apache-2.0
#include "lockd/daemon.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace distfuse::lockd {

namespace {

std::string printable(const std::uint8_t* name, std::size_t length) {
  std::string text;
  for (std::size_t i = 0; i < length && name[i] != 0; ++i)
    text += name[i] >= 0x20 && name[i] < 0x7f ? static_cast<char>(name[i]) : '?';
  return text;
}

/// Of a Hello that names a session.
SessionToken token_of(const df_hello& hello) {
  return std::to_array(hello.token);
}

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

}  // namespace

Result<ClusterId> parse_cluster_id(const std::string& text) {
  ClusterId id{};
  if (text.size() != 2 * id.size()) return Error{EINVAL, "a cluster id has 32 hex digits"};
  for (std::size_t i = 0; i < id.size(); ++i) {
    const int high = hex_digit(text[2 * i]);
    const int low = hex_digit(text[2 * i + 1]);
    if (high < 0 || low < 0) return Error{EINVAL, "a cluster id has 32 hex digits"};
    id[i] = static_cast<std::uint8_t>(high << 4 | low);
  }
  return id;
}

Result<std::unique_ptr<Daemon>> Daemon::create(const DaemonOptions& options,
                                               DaemonActions& actions) {
  auto checked = options;
  checked.limits.file_locks.waiters_per_session = options.limits.asks;
  std::unique_ptr<Daemon> daemon(new Daemon(checked, actions));
  DISTFUSE_TRY(daemon->init());
  return daemon;
}

Status Daemon::init() {
  const auto& limits = options_.limits;
  const df_lockd_config config{options_.table.buckets,   options_.table.overflow,
                               limits.sessions.node_ids, limits.objects,
                               limits.waiters,           limits.asks};
  const auto bytes = df_lockd_memory(&config);
  if (bytes == 0) return Error{EINVAL, "the lock table's size or limits are out of range"};
  memory_ = {static_cast<std::byte*>(std::malloc(bytes)), std::free};
  if (memory_ == nullptr)
    return Error{ENOMEM, fmt::format("no memory for {} bytes of lock state", bytes)};
  df_lockd_shell shell{};
  shell.context = this;
  shell.post = [](void* context, df_u64 cookie, const df_chain* chain) {
    static_cast<Daemon*>(context)->actions_.post(cookie, *chain);
  };
  shell.send = [](void* context, df_u32 node, const df_msg* message) {
    auto* self = static_cast<Daemon*>(context);
    const auto* session = self->sessions_.find_node(static_cast<NodeId>(node));
    if (session != nullptr) self->send(*session, *message);
  };
  shell.drop = [](void* context, df_u32 node, int reason) {
    static_cast<Daemon*>(context)->drops_.emplace_back(static_cast<NodeId>(node), reason);
  };
  lockd_ = df_lockd_init(memory_.get(), &config, &shell);
  return {};
}

/// To a session that is being fenced nothing is sent: its connection is closed.
void Daemon::send(const Session& session, const df_msg& message) {
  if (!session.joined()) return;
  ++counters_.sent[message.head.type];
  actions_.send(session.control, std::as_bytes(std::span(message.bytes, message.head.length)));
}

// ---- Hello

Daemon::Greeting Daemon::refuse(df_refusal refusal, std::string reason) {
  ++counters_.refused;
  Greeting greeting;
  greeting.verdict = Verdict::refuse;
  greeting.welcome.magic = DF_WIRE_MAGIC;
  greeting.welcome.version = DF_WIRE_VERSION;
  greeting.welcome.refusal = refusal;
  greeting.reason = std::move(reason);
  return greeting;
}

df_welcome Daemon::welcome_of(const Session& session) const {
  df_welcome welcome{};
  welcome.magic = DF_WIRE_MAGIC;
  welcome.version = DF_WIRE_VERSION;
  welcome.session = session.id;
  std::ranges::copy(session.token, welcome.token);
  welcome.incarnation = options_.incarnation;
  welcome.node = session.node;
  welcome.buckets = options_.table.buckets;
  welcome.slots = df_table_slots(&options_.table);
  welcome.overflow = options_.table.overflow;
  welcome.asks = options_.limits.asks;
  welcome.lease_ms = options_.lease_ms;
  if (options_.lease_ms != 0)
    welcome.lease_offset =
        lease_words_offset(options_.table) + std::uint64_t{session.node} * sizeof(std::uint64_t);
  if (session.state == SessionState::reclaiming)
    welcome.grace_ms = static_cast<std::uint32_t>(std::max<Milliseconds>(grace_left(), 1));
  return welcome;
}

Daemon::Greeting Daemon::hello(ConnectionId connection, std::span<const std::byte> data,
                               const std::string& peer) {
  df_hello hello;
  const int check = df_hello_check(data.data(), static_cast<df_u32>(data.size()), &hello);
  if (check == DF_CHECK_VERSION)
    return refuse(DF_REFUSED_VERSION,
                  fmt::format("it speaks lock protocol version {}, lockd speaks {}", hello.version,
                              DF_WIRE_VERSION));
  if (check != DF_CHECK_OK || data.size() != sizeof hello) {
    ++counters_.malformed;
    return {Verdict::reject, {}, fmt::format("its hello is malformed: {}", df_check_text(check))};
  }
  if (std::memcmp(hello.cluster, options_.cluster.data(), options_.cluster.size()) != 0)
    return refuse(DF_REFUSED_CLUSTER, "it belongs to another cluster");
  return hello.role == DF_ROLE_CONTROL ? hello_control(connection, hello, peer)
                                       : hello_lane(connection, hello);
}

Daemon::Greeting Daemon::hello_control(ConnectionId connection, const df_hello& hello,
                                       const std::string& peer) {
  if (hello.session != 0) return hello_again(connection, hello, peer);
  if (phase_ != Phase::normal)
    return refuse(DF_REFUSED_GRACE, "it is new, and sessions from before the restart come first");
  const auto name = printable(hello.name, sizeof hello.name);
  const auto token = actions_.new_token();
  auto opened = sessions_.open(connection, name, peer, token);
  if (!opened.ok() && opened.error().code == EAGAIN) {
    sessions_.reclaim_node_ids(actions_.owners_in_table());
    opened = sessions_.open(connection, name, peer, token);
  }
  if (!opened.ok()) return refuse(DF_REFUSED_NO_NODE_ID, opened.error().message);
  auto* session = sessions_.find((*opened)->id);
  if (df_lockd_session_joined(lockd_, session->node) != 0) {
    sessions_.remove(session->id);
    return refuse(DF_REFUSED_NO_NODE_ID,
                  "too many sessions were lost since lockd started; restart it");
  }
  if (options_.lease_ms == 0) return {Verdict::control, welcome_of(*session), {}};
  session->welcomed = false;
  record(SessionChange::Kind::begin, *session);
  return {Verdict::later, {}, {}};
}

/// A session of the list comes back.
Daemon::Greeting Daemon::hello_again(ConnectionId connection, const df_hello& hello,
                                     const std::string& peer) {
  if (phase_ != Phase::grace)
    return refuse(DF_REFUSED_SESSION, fmt::format("session {:#x} is over", hello.session));
  const auto back = sessions_.rejoin(hello.session, token_of(hello), connection, peer);
  if (!back.ok()) return refuse(DF_REFUSED_SESSION, back.error().message);
  auto* session = sessions_.find(hello.session);
  if (df_lockd_session_joined(lockd_, session->node) != 0) {
    sessions_.leave_again(session->id);
    return refuse(DF_REFUSED_NO_NODE_ID,
                  "too many sessions were lost since lockd started; restart it");
  }
  begin_lease(*session);
  return {Verdict::control, welcome_of(*session), {}};
}

void Daemon::recorded(SessionChange::Kind kind, SessionId id, bool durable) {
  auto* session = sessions_.find(id);
  if (session == nullptr || kind == SessionChange::Kind::end) return;
  if (kind == SessionChange::Kind::lost) {
    session->noted = durable;
    return actions_.fence(id);
  }
  if (!session->joined() || session->welcomed) return;  // Lost before it was told anything.
  if (!durable) {
    const auto connection = session->control;
    withdraw(connection);
    return actions_.greet(connection,
                          refuse(DF_REFUSED_GRACE, "the list of sessions cannot be written"));
  }
  session->welcomed = true;
  begin_lease(*session);
  actions_.greet(session->control, {Verdict::control, welcome_of(*session), {}});
}

Daemon::Greeting Daemon::hello_lane(ConnectionId connection, const df_hello& hello) {
  const auto session = sessions_.add_lane(connection, hello.session, token_of(hello));
  if (!session.ok()) return refuse(DF_REFUSED_SESSION, session.error().message);
  return {Verdict::lane, welcome_of(**session), {}};
}

void Daemon::withdraw(ConnectionId connection) {
  const auto ended = sessions_.connection_ended(connection);
  if (ended.was != SessionTable::Ended::Was::control) return;
  if (ended.session->state != SessionState::reclaiming) return end(ended.session->id, true);
  df_lockd_session_gone(lockd_, ended.session->node, 1);
  sessions_.leave_again(ended.session->id);
  finish_drops();
}

// ---- messages

void Daemon::chain_done(std::uint64_t cookie, std::uint64_t old, const void* image) {
  df_lockd_chain_done(lockd_, cookie, old, image);
  finish_drops();
}

std::uint32_t Daemon::requests(const Session& session) const {
  return df_lockd_session_requests(lockd_, session.node) +
         static_cast<std::uint32_t>(file_locks_.session_waits(session.id));
}

void Daemon::message(ConnectionId connection, std::span<const std::byte> bytes) {
  const auto* session = sessions_.find_connection(connection);
  if (session == nullptr || !session->joined()) return;
  if (session->control != connection) {
    ++counters_.malformed;
    return lose(session->id, "it sent a message on a lane", Loss::other);
  }
  df_msg message;
  const int check = df_msg_read(bytes.data(), static_cast<df_u32>(bytes.size()), &message);
  if (check != DF_CHECK_OK || df_msg_from_client(message.head.type) == 0) {
    ++counters_.malformed;
    return lose(session->id,
                fmt::format("malformed message ({}): {}", df_msg_name(message.head.type),
                            check != DF_CHECK_OK ? df_check_text(check) : "not a client's to send"),
                Loss::other);
  }
  ++counters_.messages;
  ++counters_.received[message.head.type];
  dispatch(*session, message);
  finish_drops();
}

void Daemon::bye(const Session& session) {
  spdlog::info("session {:#x} ({}, node {}) ended", session.id, session.name, session.node);
  ++counters_.byes;
  end(session.id, true);
}

/// No file lock is given while sessions of the list may still hold it (the lock core does so by itself). True: it is answered.
bool Daemon::defer_in_grace(const Session& session, const df_msg& message) {
  if (phase_ == Phase::normal) return false;
  const auto& head = message.head;
  const bool asks = head.type == DF_MSG_FILE_TEST ||
                    (head.type == DF_MSG_FILE_LOCK && (message.file.flags & DF_FILE_RECLAIM) == 0);
  if (asks) reply_file(session, head.key, head.seq, EAGAIN);
  return asks;
}

void Daemon::dispatch(const Session& session, const df_msg& message) {
  if (defer_in_grace(session, message)) return;
  switch (message.head.type) {
    case DF_MSG_BYE:
      return bye(session);
    case DF_MSG_RECLAIMED:
      return reclaimed(session);
    case DF_MSG_FILE_LOCK:
      return file_lock(session, message.file);
    case DF_MSG_FILE_UNLOCK:
      return file_unlock(session, message.file);
    case DF_MSG_FILE_TEST:
      return file_test(session, message.file);
    case DF_MSG_FILE_CANCEL: {
      std::vector<FileLockAnswer> answers;
      // Not waiting any more: its answer is on its way.
      (void)file_locks_.cancel(session.id, message.head.seq, answers);
      return answer_waits(answers);
    }
    case DF_MSG_ASK:
    case DF_MSG_FIND:
    case DF_MSG_GLIMPSE:
      if (requests(session) >= options_.limits.asks)
        return lose(session.id, "it has more unanswered requests than it was told to", Loss::other);
      break;
    default:
      break;
  }
  df_lockd_message(lockd_, session.node, &message);
}

// ---- file locks

namespace {

FileLockRequest request_of(const Session& session, const df_msg_file& file) {
  FileLockRequest request;
  request.space = {df_key_split_inode(file.head.key), (file.flags & DF_FILE_FLOCK) != 0};
  request.owner = {session.id, file.owner};
  request.type = file.type == DF_FILE_WRITE ? FileLockType::write : FileLockType::read;
  request.start = file.start;
  request.end = file.end;
  request.pid = file.pid;
  request.request = file.head.seq;
  return request;
}

}  // namespace

void Daemon::reply_file(const Session& session, std::uint64_t key, std::uint64_t seq, int error) {
  df_msg reply;
  df_msg_init(&reply, DF_MSG_FILE_REPLY, 0, key, seq);
  reply.file_reply.error = error;
  reply.file_reply.type = DF_FILE_NONE;
  send(session, reply);
}

void Daemon::answer_waits(const std::vector<FileLockAnswer>& answers) {
  for (const auto& answer : answers)
    if (const auto* session = sessions_.find(answer.session))
      reply_file(*session, df_key_inode(answer.ino), answer.request, answer.error);
}

void Daemon::file_lock(const Session& session, const df_msg_file& file) {
  const bool wait = (file.flags & DF_FILE_WAIT) != 0;
  const bool awaited =
      phase_ == Phase::grace && session.state == SessionState::reclaiming && !session.reclaimed;
  if ((file.flags & DF_FILE_RECLAIM) != 0 && !awaited)
    return lose(session.id, "it reclaimed a file lock that it was not asked for", Loss::other);
  if (wait && requests(session) >= options_.limits.asks)
    return lose(session.id, "it has more unanswered requests than it was told to", Loss::other);
  std::vector<FileLockAnswer> answers;
  const int error = file_locks_.lock(request_of(session, file), wait, answers);
  if (error == EINVAL)
    return lose(session.id, "it used the id of a waiting FileLock again", Loss::other);
  if (error != FileLocks::kWaiting) reply_file(session, file.head.key, file.head.seq, error);
  answer_waits(answers);
}

void Daemon::file_unlock(const Session& session, const df_msg_file& file) {
  std::vector<FileLockAnswer> answers;
  const int error = file_locks_.unlock(request_of(session, file), answers);
  reply_file(session, file.head.key, file.head.seq, error);
  answer_waits(answers);
}

void Daemon::file_test(const Session& session, const df_msg_file& file) {
  df_msg reply;
  df_msg_init(&reply, DF_MSG_FILE_REPLY, 0, file.head.key, file.head.seq);
  reply.file_reply.type = DF_FILE_NONE;
  if (const auto conflict = file_locks_.test(request_of(session, file))) {
    reply.file_reply.type = conflict->type == FileLockType::write ? DF_FILE_WRITE : DF_FILE_READ;
    reply.file_reply.pid = conflict->pid;
    reply.file_reply.owner = conflict->owner.owner;
    reply.file_reply.start = conflict->start;
    reply.file_reply.end = conflict->end;
  }
  send(session, reply);
}

std::pair<std::vector<std::uint32_t>, std::uint32_t> Daemon::waiters(std::uint32_t slot) const {
  std::vector<std::uint32_t> nodes(16);
  const auto count =
      df_lockd_slot_waiters(lockd_, slot, nodes.data(), static_cast<df_u32>(nodes.size()));
  if (count < nodes.size()) nodes.resize(count);
  return {std::move(nodes), count};
}

df_lockd_counters Daemon::lock_counters() const {
  df_lockd_counters counters{};
  df_lockd_read_counters(lockd_, &counters);
  return counters;
}

}  // namespace distfuse::lockd
