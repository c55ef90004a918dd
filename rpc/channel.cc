// SPDX-License-Identifier: Apache-2.0
#include "rpc/channel.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstring>

#include "rpc/data_check.h"

namespace distfuse::rpc {
namespace {

using namespace std::chrono_literals;

constexpr auto kSpin = 50us;       // an answer over shared memory takes a tenth of it
constexpr auto kConnectTime = 3s;  // one attempt; then the next
constexpr auto kBackoffMax = 250ms;
constexpr int kSilence = 4;  // × give_up: a connected target that answers nothing

}  // namespace

Result<std::unique_ptr<Channel>> Channel::create(ClientState& state, unsigned index) {
  std::unique_ptr<Channel> channel(new Channel(state, index));
  auto worker = UcxWorker::create(state.context);
  if (!worker) return worker.error();
  channel->worker_ = std::move(*worker);
  for (std::size_t i = 0; i < state.targets.size(); ++i)
    channel->links_.push_back(std::make_unique<Link>());
  const auto metadata = [](void* self, const void* header, std::size_t header_length, void* data,
                           std::size_t length, const ucp_am_recv_param_t* param) {
    bool in_progress = false;
    static_cast<Channel*>(self)->on_reply(
        true, {static_cast<const std::byte*>(header), header_length}, data, length,
        (param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) != 0, in_progress);
    return in_progress ? UCS_INPROGRESS : UCS_OK;
  };
  const auto data = [](void* self, const void* header, std::size_t header_length, void* payload,
                       std::size_t length, const ucp_am_recv_param_t* param) {
    bool in_progress = false;
    static_cast<Channel*>(self)->on_reply(
        false, {static_cast<const std::byte*>(header), header_length}, payload, length,
        (param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) != 0, in_progress);
    return in_progress ? UCS_INPROGRESS : UCS_OK;
  };
  channel->worker_->on_message(wire::kMetadataReply, metadata, channel.get());
  channel->worker_->on_message(wire::kDataReply, data, channel.get());
  return channel;
}

Channel::~Channel() {
  if (!worker_) return;
  for (auto& link : links_)
    if (link->endpoint != nullptr && link->state == Link::State::up) close_endpoint(*link);
  const auto deadline = Clock::now() + 5s;
  const auto open = [](const auto& link) { return !link->endpoint_closed; };
  while (std::any_of(links_.begin(), links_.end(), open) && Clock::now() < deadline)
    worker_->progress();
}

std::string Channel::execute(std::span<Flight> flights, std::chrono::milliseconds give_up) {
  flights_ = flights;
  give_up_ = give_up;
  last_failure_.clear();
  unsent_ = static_cast<std::uint32_t>(flights.size());
  first_call_ = next_call_;
  next_call_ += flights.size();
  auto now = Clock::now();
  for (auto& link : links_) link->wanted = false;
  for (std::size_t i = 0; i < flights.size(); ++i) {
    Flight& flight = flights[i];
    flight.call = first_call_ + i;
    flight.channel = this;
    Link& link = *links_[flight.target];
    link.wanted = true;
    link.last_answer = now;
    link.away_since = link.state == Link::State::up ? Clock::time_point{} : now;
  }
  auto busy_until = now + kSpin;
  while (!finished()) {
    bool worked = false;
    for (std::uint32_t t = 0; t < links_.size(); ++t)
      if (links_[t]->wanted) worked |= advance(t, now);
    if (unsent_ != 0) worked |= send_ready();
    worked |= worker_->progress();
    now = Clock::now();
    if (worked) busy_until = now + kSpin;
    if (now < busy_until || finished()) continue;
    sleep(now);
    now = Clock::now();
  }
  flights_ = {};
  return std::exchange(last_failure_, {});
}

bool Channel::finished() const {
  return std::all_of(flights_.begin(), flights_.end(), [](const Flight& f) {
    return f.operations == 0 &&
           (f.state == Flight::State::answered || f.state == Flight::State::failed);
  });
}

/// Until UCX, a stream or a timer has something. The caller's thread has nothing else to do.
void Channel::sleep(Clock::time_point now) {
  auto until = now + 1s;
  poll_.clear();
  poll_.push_back({worker_->event_fd(), POLLIN, 0});
  for (auto& link : links_) {
    if (!link->wanted) continue;
    if (link->state == Link::State::connecting) poll_.push_back(link->handshake->wants());
    if (link->state == Link::State::up)
      poll_.push_back({link->stream.get(), POLLIN | POLLRDHUP, 0});
    if (link->state == Link::State::down) until = std::min(until, link->next_attempt);
    if (link->away_since != Clock::time_point{})
      until = std::min(until, link->away_since + give_up_);
  }
  // A send that waits for a dead peer's memory keeps UCX from arming: the streams are looked at all the same.
  const bool armed = worker_->arm();
  const auto ms =
      std::chrono::ceil<std::chrono::milliseconds>(std::max(until - now, Clock::duration::zero()));
  if (poll(poll_.data(), poll_.size(), armed ? static_cast<int>(ms.count()) : 0) <= 0) return;
  std::size_t next = 1;
  for (auto& link : links_) {
    if (!link->wanted) continue;
    if (link->state == Link::State::connecting) ++next;
    if (link->state == Link::State::up && poll_[next++].revents != 0)
      break_link(*link, "the connection ended");
  }
}

bool Channel::gave_up() const {
  return std::any_of(links_.begin(), links_.end(), [](const auto& link) {
    return link->state != Link::State::up && link->away_since != Clock::time_point{};
  });
}

std::uint64_t Channel::connection(std::uint32_t target) const {
  const Link& link = *links_.at(target);
  return link.state == Link::State::up && !link.failed ? link.number : 0;
}

void Channel::watch(int wake_fd, std::chrono::milliseconds timeout) {
  poll_.clear();
  poll_.push_back({wake_fd, POLLIN, 0});
  for (auto& link : links_)
    if (link->state == Link::State::up && !link->failed)
      poll_.push_back({link->stream.get(), POLLIN | POLLRDHUP, 0});
  if (poll(poll_.data(), poll_.size(),
           timeout.count() < 0 ? -1 : static_cast<int>(timeout.count())) <= 0)
    return;
  std::size_t next = 1;
  for (auto& link : links_)
    if (link->state == Link::State::up && !link->failed && poll_[next++].revents != 0)
      break_link(*link, "the connection ended");
}

// ---- links

bool Channel::advance(std::uint32_t target, Clock::time_point now) {
  switch (links_[target]->state) {
    case Link::State::down:
      return advance_down(target, now);
    case Link::State::connecting:
      return advance_connecting(target, now);
    case Link::State::up:
      return advance_up(target, now);
    case Link::State::closing:
      return advance_closing(target, now);
  }
  std::abort();
}

bool Channel::advance_down(std::uint32_t target, Clock::time_point now) {
  Link& link = *links_[target];
  if (link.away_since != Clock::time_point{} && now - link.away_since >= give_up_) {
    fail_flights(target, EIO, link.reason.empty() ? "not reachable" : link.reason);
    return true;
  }
  if (now < link.next_attempt) return false;
  wire::Hello hello{};
  std::memcpy(hello.cluster_id, state_.options.cluster_id.data(), sizeof hello.cluster_id);
  hello.session = state_.options.session;
  hello.token = link.own_token = draw_token();
  hello.channel = link.channel;
  hello.attempt = ++link.attempts;
  hello.daemon = state_.options.daemon;
  hello.role = static_cast<std::uint32_t>(state_.options.role);
  hello.services = state_.targets[target]->service;
  auto handshake = Handshake::start(state_.targets[target]->address, hello, worker_->address());
  if (!handshake) {
    link.reason = handshake.error().message;
    went_down(target, now);
    return true;
  }
  link.handshake = std::move(*handshake);
  link.state = Link::State::connecting;
  link.next_attempt = now + kConnectTime;  // until then this one may take
  return true;
}

bool Channel::advance_connecting(std::uint32_t target, Clock::time_point now) {
  Link& link = *links_[target];
  switch (link.handshake->step()) {
    case Handshake::State::pending:
      if (now < link.next_attempt && now - link.away_since < give_up_) return false;
      link.reason = "no answer to the hello";
      break;
    case Handshake::State::done:
      connected(target, *link.handshake, now);
      return true;
    case Handshake::State::failed: {
      const Error error = link.handshake->error();
      link.reason = error.message;
      // Nothing that passes by itself: another cluster, another version, a fenced session.
      if (error.code == EPROTO || error.code == kFenced)
        fail_flights(target, error.code, error.message);
      break;
    }
  }
  link.handshake.reset();
  went_down(target, now);
  return true;
}

void Channel::connected(std::uint32_t target, Handshake& handshake, Clock::time_point now) {
  Link& link = *links_[target];
  auto endpoint = worker_->connect(
      handshake.server_address(),
      [](void* argument, ucp_ep_h, ucs_status_t status) {
        auto& l = *static_cast<Link*>(argument);
        l.failed = true;
        l.reason = ucs_status_string(status);
      },
      &link);
  if (!endpoint) {
    link.reason = endpoint.error().message;
    link.handshake.reset();
    return went_down(target, now);
  }
  link.endpoint = *endpoint;
  link.endpoint_closed = false;
  link.server_token = handshake.welcome().token;
  link.credits = handshake.welcome().credits;
  link.in_flight = 0;
  link.failed = false;
  link.stream = handshake.take_stream();
  link.handshake.reset();
  link.state = Link::State::up;
  link.number = ++connections_;
  link.boot = handshake.welcome().boot;
  link.last_answer = now;
  state_.connects.fetch_add(1, std::memory_order_relaxed);
  Target& t = *state_.targets[target];
  t.failed = false;
  if (t.away.exchange(false)) spdlog::info("rpc: {} ({}) is back", t.name, t.address);
}

void Channel::went_down(std::uint32_t target, Clock::time_point now) {
  Link& link = *links_[target];
  const bool was_up = link.state == Link::State::closing;
  link.state = Link::State::down;
  if (link.away_since == Clock::time_point{}) link.away_since = now;
  link.backoff = std::clamp<std::chrono::milliseconds>(2 * link.backoff, 5ms, kBackoffMax);
  link.next_attempt = now + link.backoff;
  // A link that broke is nothing to tell of when the next attempt succeeds.
  Target& t = *state_.targets[target];
  if (!was_up && !t.failed && !t.away.exchange(true))
    spdlog::warn("rpc: {} ({}) is away: {}; trying again for {} s", t.name, t.address, link.reason,
                 std::chrono::duration_cast<std::chrono::seconds>(give_up_).count());
}

void Channel::break_link(Link& link, std::string reason) {
  if (link.failed) return;
  link.failed = true;
  link.reason = std::move(reason);
}

bool Channel::advance_up(std::uint32_t target, Clock::time_point now) {
  Link& link = *links_[target];
  if (!link.failed && link.in_flight != 0 && now - link.last_answer > kSilence * give_up_) {
    break_link(link, "connected, but answers nothing");
    link.away_since = link.last_answer;
  }
  if (!link.failed) return false;
  link.stream.reset();
  close_endpoint(link);
  link.state = Link::State::closing;
  return true;
}

void Channel::close_endpoint(Link& link) {
  ucp_request_param_t param{};
  param.op_attr_mask =
      UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
  param.flags = UCP_EP_CLOSE_FLAG_FORCE;
  param.user_data = &link;
  param.cb.send = [](void* request, ucs_status_t, void* argument) {
    static_cast<Link*>(argument)->endpoint_closed = true;
    ucp_request_free(request);
  };
  const ucs_status_ptr_t request = ucp_ep_close_nbx(std::exchange(link.endpoint, nullptr), &param);
  if (!UCS_PTR_IS_PTR(request)) link.endpoint_closed = true;
}

/// Down when UCX has let go of every buffer; what was not answered is to be sent again.
bool Channel::advance_closing(std::uint32_t target, Clock::time_point now) {
  Link& link = *links_[target];
  if (!link.endpoint_closed) return false;
  for (const Flight& flight : flights_)
    if (flight.target == target && flight.operations != 0) return false;
  for (Flight& flight : flights_) {
    if (flight.target != target || flight.state != Flight::State::sent) continue;
    flight.state = Flight::State::unsent;
    flight.receiving = false;
    ++unsent_;
    state_.retries.fetch_add(1, std::memory_order_relaxed);
  }
  link.in_flight = 0;
  went_down(target, now);
  return true;
}

void Channel::fail_flights(std::uint32_t target, int error, const std::string& reason) {
  Target& t = *state_.targets[target];
  if (!t.failed.exchange(true))
    spdlog::error("rpc: {} ({}): {}: requests fail", t.name, t.address, reason);
  last_failure_ = t.name + " (" + t.address + "): " + reason;
  for (Flight& flight : flights_) {
    if (flight.target != target || flight.state != Flight::State::unsent) continue;
    flight.state = Flight::State::failed;
    flight.error = error;
    --unsent_;
    state_.failures.fetch_add(1, std::memory_order_relaxed);
  }
}

// ---- requests

bool Channel::send_ready() {
  bool worked = false;
  for (Flight& flight : flights_) {
    if (flight.state != Flight::State::unsent) continue;
    Link& link = *links_[flight.target];
    if (link.state != Link::State::up || link.failed) continue;
    if (flight.kind == Flight::Kind::probe) {
      flight.state = Flight::State::answered;
      --unsent_;
      worked = true;
      continue;
    }
    if (link.in_flight >= link.credits) continue;
    send(flight, link);
    worked = true;
  }
  return worked;
}

void Channel::send(Flight& flight, Link& link) {
  flight.header.head = {link.server_token, flight.call};
  const bool data = flight.kind == Flight::Kind::data;
  std::span<const std::byte> payload = flight.request;
  if (data) {
    flight.header.request = flight.data->request;
    const auto& request = flight.header.request;
    payload = {flight.data->buffer, sends_bulk(request.op) ? request.length : 0U};
  }
  flight.state = Flight::State::sent;
  --unsent_;
  if (link.in_flight++ == 0) link.last_answer = Clock::now();
  ucp_request_param_t param{};
  param.op_attr_mask =
      UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
  param.flags = payload.size() <= wire::kEagerMax ? UCP_AM_SEND_FLAG_EAGER : UCP_AM_SEND_FLAG_RNDV;
  param.user_data = &flight;
  param.cb.send = [](void* request, ucs_status_t status, void* argument) {
    auto& f = *static_cast<Flight*>(argument);
    ucp_request_free(request);
    --f.operations;
    if (status != UCS_OK)
      f.channel->break_link(*f.channel->links_[f.target], ucs_status_string(status));
  };
  ++flight.operations;
  const ucs_status_ptr_t request =
      ucp_am_send_nbx(link.endpoint, data ? wire::kDataRequest : wire::kMetadataRequest,
                      &flight.header, data ? sizeof flight.header : sizeof flight.header.head,
                      payload.data(), payload.size(), &param);
  if (UCS_PTR_IS_PTR(request)) return;
  --flight.operations;
  if (UCS_PTR_IS_ERR(request)) break_link(link, ucs_status_string(UCS_PTR_STATUS(request)));
}

// ---- replies: from UCX's callbacks

void Channel::on_reply(bool metadata, std::span<const std::byte> header, void* data,
                       std::size_t length, bool rendezvous, bool& in_progress) {
  wire::DataReplyHeader in{};
  const std::size_t expected = metadata ? sizeof in.head : sizeof in;
  if (header.size() < sizeof in.head) return;
  std::memcpy(&in, header.data(), std::min(header.size(), expected));
  const auto it = std::find_if(links_.begin(), links_.end(), [&](const auto& l) {
    return l->state == Link::State::up && l->own_token == in.head.token;
  });
  if (it == links_.end() || (*it)->failed) return;  // of a connection that is over
  Link& link = **it;
  const std::uint64_t index = in.head.call - first_call_;
  if (header.size() != expected || index >= flights_.size())
    return break_link(link, "sent a malformed reply");
  Flight& flight = flights_[index];
  const auto kind = metadata ? Flight::Kind::metadata : Flight::Kind::data;
  if (flight.kind != kind || links_[flight.target].get() != &link ||
      flight.state != Flight::State::sent || flight.receiving)
    return break_link(link, "answered what was not asked");
  if (metadata) {
    on_metadata_reply(flight, link, data, length, rendezvous);
  } else {
    on_data_reply(flight, link, in.reply, data, length, rendezvous);
  }
  in_progress = rendezvous && !link.failed && length != 0;
}

void Channel::on_data_reply(Flight& flight, Link& link, const DataReply& reply, void* data,
                            std::size_t length, bool rendezvous) {
  DataCall& call = *flight.data;
  if (auto status = check_data_reply(call.request, reply, length); !status.ok())
    return break_link(link, status.error().message);
  call.reply = reply;
  call.connection = link.number;
  call.boot = link.boot;
  if (length == 0) return answered(flight);
  if (rendezvous) return receive(flight, data, call.buffer, length);
  std::memcpy(call.buffer, data, length);
  answered(flight);
}

void Channel::on_metadata_reply(Flight& flight, Link& link, void* data, std::size_t length,
                                bool rendezvous) {
  if (length == 0 || length > kMaxMetadataReply)
    return break_link(link, "sent a metadata reply of " + std::to_string(length) + " bytes");
  flight.boot = link.boot;
  flight.reply->resize(length);
  if (rendezvous) return receive(flight, data, flight.reply->data(), length);
  std::memcpy(flight.reply->data(), data, length);
  answered(flight);
}

void Channel::receive(Flight& flight, void* data, void* memory, std::size_t length) {
  flight.receiving = true;
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
  param.user_data = &flight;
  param.cb.recv_am = [](void* request, ucs_status_t status, std::size_t, void* argument) {
    auto& f = *static_cast<Flight*>(argument);
    ucp_request_free(request);
    --f.operations;
    if (status == UCS_OK) return f.channel->answered(f);
    f.channel->break_link(*f.channel->links_[f.target], ucs_status_string(status));
  };
  ++flight.operations;
  const ucs_status_ptr_t request =
      ucp_am_recv_data_nbx(worker_->handle(), data, memory, length, &param);
  if (UCS_PTR_IS_PTR(request)) return;
  --flight.operations;
  if (request == nullptr) return answered(flight);
  break_link(*links_[flight.target], ucs_status_string(UCS_PTR_STATUS(request)));
}

void Channel::answered(Flight& flight) {
  Link& link = *links_[flight.target];
  flight.state = Flight::State::answered;
  flight.receiving = false;
  --link.in_flight;
  link.away_since = {};
  link.backoff = 0ms;
  link.last_answer = Clock::now();
}

}  // namespace distfuse::rpc
