// SPDX-License-Identifier: Apache-2.0
#include "lockd/service.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/random.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <future>
#include <utility>

#include "lockd/status.h"

namespace distfuse::lockd {

namespace {

constexpr std::size_t kMaxRefused = 64;
constexpr std::chrono::milliseconds kRefusedTime{1000};
constexpr std::chrono::milliseconds kForever{-1};
constexpr std::chrono::seconds kStatusTime{4};

ConnectionId id_of(const fabric::Connection& connection) {
  return reinterpret_cast<std::uintptr_t>(connection.user);
}

}  // namespace

Result<std::unique_ptr<Service>> Service::create(const ServiceOptions& options,
                                                 std::unique_ptr<Storage> storage,
                                                 std::unique_ptr<SessionLog> list) {
  if (options.lease_ms != 0 && list == nullptr)
    return Error{EINVAL, "leases need a list of sessions"};
  std::unique_ptr<Service> service(new Service(options));
  DISTFUSE_TRY(service->init(std::move(storage), std::move(list)));
  return service;
}

df_table Service::table() const {
  return {options_.slots / DF_BUCKET_SLOTS, options_.slots / 4, DF_NODE_LOCKD};
}

Status Service::make_table() {
  const auto geometry = table();
  auto region = fabric_->create_region(region_bytes(geometry));
  if (!region.ok()) return region.error();
  region_ = std::move(region).value();
  auto* slots = reinterpret_cast<df_slot*>(region_->bytes().data());
  for (std::uint32_t i = 0; i < df_table_slots(&geometry); ++i) df_lockd_prepare_slot(&slots[i], i);
  return {};
}

Status Service::init(std::unique_ptr<Storage> storage, std::unique_ptr<SessionLog> list) {
  const auto cluster = parse_cluster_id(options_.cluster_id);
  if (!cluster.ok()) return cluster.error();
  auto opened = fabric::open(options_.fabric);
  if (!opened.ok()) return opened.error();
  fabric_ = std::move(opened).value();
  DISTFUSE_TRY(make_table());
  auto worker = fabric_->create_worker(*this);
  if (!worker.ok()) return worker.error();
  worker_ = std::move(worker).value();
  auto loopback = Loopback::create(*worker_, *region_,
                                   std::size_t{options_.limits.objects} + options_.limits.waiters);
  if (!loopback.ok()) return loopback.error();
  loopback_ = std::move(loopback).value();
  auto daemon = Daemon::create(
      {options_.incarnation, *cluster, table(), options_.limits, options_.lease_ms}, *this);
  if (!daemon.ok()) return daemon.error();
  daemon_ = std::move(daemon).value();
  auto address = worker_->listen(options_.listen);
  if (!address.ok()) return address.error();
  address_ = std::move(address).value();
  const auto fenced = [this](SessionId session) {
    enter([this, session] { daemon_->fenced(session); });
  };
  const auto who_lives = [this] { enter([this] { fencer_->live(daemon_->live_sessions()); }); };
  const auto over = [this](const std::string& who) {
    enter([this, who] { incarnation_over(who); });
  };
  fencer_ = std::make_unique<Fencer>(std::move(storage), fenced, who_lives, over);
  if (list == nullptr) return {};
  const auto done = [this](SessionChange::Kind kind, SessionId session, bool durable) {
    enter([=, this] { daemon_->recorded(kind, session, durable); });
  };
  recorder_ = std::make_unique<Recorder>(std::move(list), done);
  tell_time();
  daemon_->recover(recorder_->listed());
  return {};
}

Service::~Service() {
  fencer_.reset();
  recorder_.reset();
  peers_.clear();
  closed_.clear();
  loopback_.reset();
  worker_.reset();
}

// ---- the thread

void Service::run() {
  while (!stop_.load(std::memory_order_acquire)) {
    tell_time();
    bool worked = worker_->progress();
    worked = step() || worked;
    if (worked) continue;
    worker_->wait(patience());
    ++wakeups_;
  }
}

void Service::tell_time() {
  daemon_->at(static_cast<Milliseconds>(
      std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now().time_since_epoch())
          .count()));
}

void Service::stop() {
  stop_.store(true, std::memory_order_release);
  worker_->wake();
}

bool Service::step() {
  bool worked = run_inbox();
  if (daemon_->now() >= daemon_->wake_at()) daemon_->tick();
  send_queued();
  if (!overrun_.empty()) {
    drop_overrun();
    worked = true;
  }
  drop_refused();
  closed_.clear();
  return worked;
}

void Service::enter(std::function<void()> function) {
  {
    const std::lock_guard lock(mutex_);
    inbox_.push_back(std::move(function));
  }
  worker_->wake();
}

bool Service::run_inbox() {
  std::vector<std::function<void()>> functions;
  {
    const std::lock_guard lock(mutex_);
    functions.swap(inbox_);
  }
  for (const auto& function : functions) function();
  return !functions.empty();
}

std::chrono::milliseconds Service::patience() const {
  auto left = std::chrono::milliseconds::max();
  if (!refused_.empty())
    left = std::chrono::ceil<std::chrono::milliseconds>(refused_.front().second - Clock::now());
  if (const auto at = daemon_->wake_at(); at != kNever)
    left =
        std::min(left, std::chrono::milliseconds(at) - std::chrono::milliseconds(daemon_->now()));
  if (left == std::chrono::milliseconds::max()) return kForever;
  return std::max(left, std::chrono::milliseconds(0));
}

// ---- connections

void Service::keep(ConnectionId id, std::unique_ptr<fabric::Connection> connection) {
  connection->user = reinterpret_cast<void*>(static_cast<std::uintptr_t>(id));
  peers_[id].connection = std::move(connection);
}

void Service::on_connect_request(std::unique_ptr<fabric::ConnectRequest> request) {
  const auto id = next_connection_++;
  peers_[id];  // The lock core may have a word for a session that joins; it follows the Welcome.
  const auto greeting = daemon_->hello(id, request->private_data(), request->peer());
  // Who is to come again does so several times a second.
  if (greeting.verdict == Daemon::Verdict::reject || greeting.verdict == Daemon::Verdict::refuse)
    spdlog::log(
        greeting.welcome.refusal == DF_REFUSED_GRACE ? spdlog::level::debug : spdlog::level::warn,
        "refused {}: {}", request->peer(), greeting.reason);
  if (greeting.verdict == Daemon::Verdict::reject) {
    peers_.erase(id);
    return worker_->reject(std::move(request), greeting.reason);
  }
  if (greeting.verdict == Daemon::Verdict::later) {
    peers_[id].request = std::move(request);
    return;
  }
  accept(id, std::move(request), greeting);
}

/// Its Hello waited for the list of sessions.
void Service::greet(ConnectionId id, const Greeting& greeting) {
  const auto peer = peers_.find(id);
  if (peer == peers_.end() || peer->second.request == nullptr) return;
  auto request = std::move(peer->second.request);
  if (greeting.verdict == Verdict::refuse)
    spdlog::warn("refused {}: {}", request->peer(), greeting.reason);
  accept(id, std::move(request), greeting);
}

void Service::accept(ConnectionId id, std::unique_ptr<fabric::ConnectRequest> request,
                     const Daemon::Greeting& greeting) {
  const auto peer = request->peer();
  auto* exposed = greeting.verdict == Daemon::Verdict::lane ? region_.get() : nullptr;
  auto connection =
      worker_->accept(std::move(request), std::as_bytes(std::span(&greeting.welcome, 1)), exposed);
  if (!connection.ok()) {
    spdlog::warn("could not accept {}: {}", peer, connection.error().message);
    peers_.erase(id);
    blocked_.erase(id);
    if (greeting.verdict != Daemon::Verdict::refuse) daemon_->withdraw(id);
    return;
  }
  keep(id, std::move(connection).value());
  if (greeting.verdict == Daemon::Verdict::refuse)
    refused_.emplace_back(id, Clock::now() + kRefusedTime);
  if (greeting.verdict == Daemon::Verdict::control) {
    const auto* session = daemon_->sessions().find_connection(id);
    spdlog::info("session {:#x} ({}, node {}, {}) {}", session->id, session->name, session->node,
                 peer, session->state == SessionState::live ? "began" : "came back");
  }
}

void Service::on_connected(fabric::Connection& connection, std::span<const std::byte> /*data*/) {
  spdlog::critical("{} answered a connect that lockd never made", connection.peer());
  std::abort();
}

void Service::on_message(fabric::Connection& connection, std::span<const std::byte> message) {
  // A refused one is not known to the daemon, and a closed one no more: both are not listened to.
  if (peers_.contains(id_of(connection))) daemon_->message(id_of(connection), message);
}

void Service::on_completion(fabric::Connection& connection, std::uint64_t cookie,
                            const Status& status) {
  if (&connection != loopback_->connection()) std::abort();  // Nothing else posts.
  if (!status.ok()) table_gone(status.error());
  const auto done = loopback_->completed(cookie);
  daemon_->chain_done(done.cookie, done.old, done.read ? done.image.data() : nullptr);
}

/// Without its loopback lockd cannot change a word of its table. As if it were killed: clients come back to its next incarnation.
void Service::table_gone(const Error& reason) {
  spdlog::critical("no way to the lock table any more: {}: ending", reason.message);
  spdlog::default_logger()->flush();
  std::_Exit(1);
}

/// Another lockd has begun since; or this one's state_dir is not the cluster's, and it would give session ids away again. Nobody it
/// welcomed can be served by the storageds.
void Service::incarnation_over(const std::string& who) const {
  spdlog::critical(
      "{} has seen a later incarnation of lockd than this one, {}: ending. If no other lockd runs, "
      "this state_dir is new or an old copy: bring the true one back, or write \"{} NUMBER\" into "
      "its file `incarnation`, with a NUMBER of at least the one that the log of that target names",
      who, options_.incarnation, options_.cluster_id);
  spdlog::default_logger()->flush();
  std::_Exit(1);
}

void Service::on_disconnect(fabric::Connection& connection, const Error& reason) {
  if (loopback_ != nullptr && &connection == loopback_->connection()) table_gone(reason);
  const auto id = id_of(connection);
  if (!peers_.contains(id)) return;
  close(id);
  daemon_->connection_ended(id, reason.message, reason.code == ECONNRESET);
}

void Service::close(ConnectionId connection) {
  const auto it = peers_.find(connection);
  if (it == peers_.end()) return;
  if (it->second.connection != nullptr) closed_.push_back(std::move(it->second.connection));
  peers_.erase(it);
  blocked_.erase(connection);
}

void Service::drop_refused() {
  const auto now = Clock::now();
  while (!refused_.empty() && (refused_.size() > kMaxRefused || refused_.front().second <= now)) {
    close(refused_.front().first);
    refused_.pop_front();
  }
}

// ---- actions

void Service::post(std::uint64_t cookie, const df_chain& chain) {
  loopback_->post(cookie, chain);
}

void Service::fence(SessionId session) {
  fencer_->fence(session);
}

void Service::record(const SessionChange& change) {
  recorder_->record(change);
}

std::uint64_t Service::lease_word(NodeId node) {
  auto* words =
      reinterpret_cast<std::uint64_t*>(region_->bytes().data() + lease_words_offset(table()));
  return std::atomic_ref(words[node]).load(std::memory_order_relaxed);
}

void Service::send(ConnectionId id, std::span<const std::byte> message) {
  auto& peer = peers_.at(id);
  if (peer.outgoing.empty() && peer.connection != nullptr) {
    const auto status = peer.connection->send(message);
    // Any error but a full queue ends the connection, and on_disconnect follows.
    if (status.ok() || status.error().code != EAGAIN) return;
  }
  if (peer.outgoing.size() >= options_.limits.outgoing()) {
    overrun_.push_back(id);
    return;
  }
  peer.outgoing.emplace_back(message.begin(), message.end());
  blocked_.insert(id);
}

void Service::send_queued() {
  for (auto it = blocked_.begin(); it != blocked_.end();) {
    auto& peer = peers_.at(*it);
    if (peer.connection == nullptr) {  // Its Welcome goes first.
      ++it;
      continue;
    }
    while (!peer.outgoing.empty()) {
      const auto status = peer.connection->send(peer.outgoing.front());
      if (!status.ok() && status.error().code == EAGAIN) break;
      peer.outgoing.pop_front();
    }
    it = peer.outgoing.empty() ? blocked_.erase(it) : std::next(it);
  }
}

void Service::drop_overrun() {
  const auto overrun = std::exchange(overrun_, {});
  for (const auto id : overrun) daemon_->lose_connection(id, "it does not take its messages");
}

std::vector<bool> Service::owners_in_table() {
  std::vector<bool> owners(0x8000, false);
  const auto geometry = table();
  for (std::uint32_t i = 0; i < df_table_slots(&geometry); ++i)
    owners[df_word_owner(read_word(region_->bytes(), i))] = true;
  return owners;
}

SessionToken Service::new_token() {
  SessionToken token{};
  // Up to 256 bytes come whole; before the kernel's pool is filled, at boot, the call waits.
  while (::getrandom(token.data(), token.size(), 0) != static_cast<ssize_t>(token.size())) {
    if (errno == EINTR) continue;
    spdlog::critical("no random numbers from the kernel: {}", std::strerror(errno));
    std::abort();
  }
  return token;
}

// ---- status

std::string Service::describe() {
  ServiceStatus service;
  service.address = address_;
  service.fabric = fabric_->describe();
  service.uptime = std::chrono::duration_cast<std::chrono::seconds>(Clock::now() - started_);
  service.wakeups = wakeups_;
  service.chains = loopback_->posted();
  service.connections = peers_.size();
  return status_json(*daemon_, region_->bytes(), service);
}

Result<std::string> Service::status() {
  auto promise = std::make_shared<std::promise<std::string>>();
  auto answer = promise->get_future();
  enter([this, promise] { promise->set_value(describe()); });
  if (answer.wait_for(kStatusTime) != std::future_status::ready)
    return Error{ETIMEDOUT, "the service thread does not answer"};
  return answer.get();
}

}  // namespace distfuse::lockd
