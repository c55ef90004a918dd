// SPDX-License-Identifier: Apache-2.0
// A request's way through the server: message, payload, handler, answer.
#include <spdlog/spdlog.h>

#include <cstring>

#include "rpc/data_check.h"
#include "rpc/server_impl.h"

namespace distfuse::rpc {

// ---- slots

ServerImpl::Slot& ServerImpl::take_slot(Connection& connection) {
  if (free_.empty()) {
    Slot& slot = slots_.emplace_back();
    slot.server = this;
    slot.index = static_cast<std::uint32_t>(slots_.size() - 1);
    free_.push_back(slot.index);
  }
  Slot& slot = slots_[free_.back()];
  free_.pop_back();
  slot.connection = &connection;
  slot.state = Slot::State::receiving;
  ++connection.slots;
  ++connection.unanswered;
  ++counters_.requests;
  return slot;
}

/// The connection itself goes in reap(), when its last slot is free.
void ServerImpl::free_slot(Slot& slot) {
  if (slot.state != Slot::State::sending) --slot.connection->unanswered;
  if (--slot.connection->slots == 0 && slot.connection->doomed) reap_again_ = true;
  if (slot.payload != nullptr) handler_.drop_write_buffer(std::exchange(slot.payload, nullptr));
  const Release release = std::exchange(slot.release, {});
  slot.bytes.clear();
  if (slot.bytes.capacity() > 64U << 10) slot.bytes = {};  // a listing once does not stay for ever
  slot.connection = nullptr;
  slot.descriptor = nullptr;
  slot.state = Slot::State::free;
  free_.push_back(slot.index);
  if (release.call != nullptr) release.call(release.argument);
}

// ---- in: from UCX's callbacks

ucs_status_t ServerImpl::on_message(bool metadata, std::span<const std::byte> header, void* data,
                                    std::size_t length, bool rendezvous) {
  // UCX_OK for a rendezvous that was not received ends it: the sender's operation completes, nothing is moved.
  wire::DataRequestHeader in{};
  const std::size_t expected = metadata ? sizeof in.head : sizeof in;
  std::memcpy(&in, header.data(), std::min(header.size(), expected));
  const auto it =
      header.size() >= sizeof in.head ? connections_.find(in.head.token) : connections_.end();
  if (it == connections_.end() || it->second->endpoint == nullptr) {
    if (counters_.dropped++ == 0)
      spdlog::debug("rpc: a message of a connection that is over was dropped");
    return UCS_OK;
  }
  Connection& connection = *it->second;
  if (connection.doomed) return UCS_OK;
  if (header.size() != expected) {
    violation(connection, "sent a header of " + std::to_string(header.size()) + " bytes");
    return UCS_OK;
  }
  if (connection.unanswered >= options_.credits) {
    violation(connection, "sent more requests than it may have in flight");
    return UCS_OK;
  }
  Slot& slot = take_slot(connection);
  slot.metadata = metadata;
  slot.call = in.head.call;
  slot.request = in.request;
  return metadata ? metadata_message(slot, data, length, rendezvous)
                  : data_message(slot, data, length, rendezvous);
}

ucs_status_t ServerImpl::metadata_message(Slot& slot, void* data, std::size_t length,
                                          bool rendezvous) {
  if (length == 0 || length > kMaxMetadataRequest) {
    violation(*slot.connection, "sent a metadata request of " + std::to_string(length) + " bytes");
    free_slot(slot);
    return UCS_OK;
  }
  slot.bytes.resize(length);
  if (rendezvous) {
    receive(slot, data, slot.bytes.data(), length);
    return UCS_INPROGRESS;
  }
  std::memcpy(slot.bytes.data(), data, length);
  make_ready(slot);
  return UCS_OK;
}

ucs_status_t ServerImpl::data_message(Slot& slot, void* data, std::size_t length, bool rendezvous) {
  if (auto status = check_data_request(slot.request, length); !status.ok()) {
    violation(*slot.connection, "sent a " + status.error().message);
    free_slot(slot);
    return UCS_OK;
  }
  const bool sessions = slot.request.op == static_cast<std::uint16_t>(DataOp::sessions);
  if (!options_.data && !sessions) {
    violation(*slot.connection, "sent a data request to a target without data");
    free_slot(slot);
    return UCS_OK;
  }
  if (length == 0) {
    make_ready(slot);
    return UCS_OK;
  }
  if (sessions) {
    slot.bytes.resize(length);
    if (rendezvous) {
      receive(slot, data, slot.bytes.data(), length);
      return UCS_INPROGRESS;
    }
    std::memcpy(slot.bytes.data(), data, length);
    make_ready(slot);
    return UCS_OK;
  }
  if (rendezvous) {
    slot.descriptor = data;
  } else if (length > wire::kEagerMax) {
    violation(*slot.connection, "sent a payload of " + std::to_string(length) + " bytes unasked");
    free_slot(slot);
    return UCS_OK;
  } else if (waiting_.empty() && (slot.payload = handler_.write_buffer(slot.request)) != nullptr) {
    std::memcpy(slot.payload, data, length);
    make_ready(slot);
    return UCS_OK;
  } else {
    const auto* bytes = static_cast<const std::byte*>(data);
    slot.bytes.assign(bytes, bytes + length);
  }
  if (!waiting_.empty() || !take_write_memory(slot)) {
    slot.state = Slot::State::waiting;
    waiting_.push_back(&slot);
  }
  return rendezvous ? UCS_INPROGRESS : UCS_OK;
}

/// False: the handler has none now.
bool ServerImpl::take_write_memory(Slot& slot) {
  slot.payload = handler_.write_buffer(slot.request);
  if (slot.payload == nullptr) return false;
  if (slot.descriptor != nullptr) {
    receive(slot, std::exchange(slot.descriptor, nullptr), slot.payload, slot.request.length);
  } else {
    std::memcpy(slot.payload, slot.bytes.data(), slot.request.length);
    slot.bytes.clear();
    make_ready(slot);
  }
  return true;
}

void ServerImpl::receive(Slot& slot, void* descriptor, void* memory, std::size_t length) {
  slot.state = Slot::State::receiving;
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
  param.user_data = &slot;
  param.cb.recv_am = [](void* request, ucs_status_t status, std::size_t, void* argument) {
    auto& s = *static_cast<Slot*>(argument);
    ucp_request_free(request);
    s.server->received(s, status == UCS_OK);
  };
  const ucs_status_ptr_t request =
      ucp_am_recv_data_nbx(worker_->handle(), descriptor, memory, length, &param);
  if (!UCS_PTR_IS_PTR(request)) received(slot, request == nullptr);
}

void ServerImpl::received(Slot& slot, bool success) {
  if (success) return make_ready(slot);
  if (!slot.connection->doomed)
    spdlog::debug("rpc: {} broke off a payload", slot.connection->peer.name);
  doom(*slot.connection);
  free_slot(slot);
}

void ServerImpl::resume_writes() {
  while (!waiting_.empty()) {
    Slot* slot = waiting_.front();
    waiting_.pop_front();  // first: the handler may call here again
    if (!take_write_memory(*slot)) return waiting_.push_front(slot);
  }
}

/// Of a doomed connection, before its endpoint is closed.
void ServerImpl::release_waiting(Connection& connection) {
  std::erase_if(waiting_, [&](Slot* slot) {
    if (slot->connection != &connection) return false;
    if (slot->descriptor != nullptr) ucp_am_data_release(worker_->handle(), slot->descriptor);
    free_slot(*slot);
    return true;
  });
}

// ---- to the handler: from progress()

void ServerImpl::make_ready(Slot& slot) {
  slot.state = Slot::State::ready;
  ready_.push_back(&slot);
}

bool ServerImpl::dispatch_ready() {
  if (ready_.empty()) return false;
  for (std::size_t count = ready_.size(); count > 0; --count) {
    Slot& slot = *ready_.front();
    ready_.pop_front();
    dispatch(slot);
  }
  return true;
}

void ServerImpl::dispatch(Slot& slot) {
  const Connection& connection = *slot.connection;
  if (connection.doomed) return free_slot(slot);
  slot.state = Slot::State::handling;
  if (slot.metadata) {
    dispatch_metadata(slot);
  } else {
    dispatch_data(slot);
  }
}

void ServerImpl::dispatch_metadata(Slot& slot) {
  Connection& connection = *slot.connection;
  auto decoded = decode_request(slot.bytes);
  if (!decoded || decoded->first.session != connection.peer.session) {
    violation(connection, decoded ? "sent another session's request"
                                  : "sent a bad request: " + decoded.error().message);
    return free_slot(slot);
  }
  MetadataResponder responder(this, slot.index);
  const Peer& peer = connection.peer;
  if (std::holds_alternative<FenceSession>(decoded->second) && peer.role != Role::lockd)
    return responder.reply(error_reply(EPERM));
  if (peer.role != Role::lockd && handler_.learning())
    return responder.reply(error_reply(kLearning));
  if (peer.role == Role::client && !handler_.session_allowed(peer.session))
    return responder.reply(error_reply(kFenced));
  handler_.on_metadata(peer, decoded->first, std::move(decoded->second), std::move(responder));
}

void ServerImpl::dispatch_data(Slot& slot) {
  Connection& connection = *slot.connection;
  const Peer& peer = connection.peer;
  if (slot.request.session != peer.session) {
    violation(connection, "sent another session's request");
    return free_slot(slot);
  }
  DataResponder responder(this, slot.index);
  const auto op = static_cast<DataOp>(slot.request.op);
  const bool lockds = op == DataOp::fence || op == DataOp::sessions;
  if ((lockds && peer.role != Role::lockd) || (op == DataOp::remove && peer.role != Role::storaged))
    return responder.reply(EPERM);
  if (op == DataOp::sessions) {
    Sessions sessions{slot.request.ino, slot.request.chunk, {}};
    sessions.ids.resize(slot.bytes.size() / sizeof(SessionId));
    if (!sessions.ids.empty())
      std::memcpy(sessions.ids.data(), slot.bytes.data(), slot.bytes.size());
    return handler_.on_sessions(std::move(sessions), std::move(responder));
  }
  if (peer.role != Role::lockd && handler_.learning()) return responder.reply(kLearning);
  if (peer.role == Role::client && !handler_.session_allowed(peer.session))
    return responder.reply(kFenced);
  const DataRequest request = slot.request;  // the slot may be answered and taken again in the call
  handler_.on_data(peer, request, std::exchange(slot.payload, nullptr), std::move(responder));
}

// ---- out

void MetadataResponder::reply(const MetadataReply& reply) {
  if (server_ == nullptr) std::abort();
  auto encoded = encode_reply(reply);
  if (!encoded) {
    spdlog::error("rpc: a reply cannot be encoded: {}", encoded.error().message);
    encoded = encode_reply(error_reply(EIO));
  }
  reply_encoded(*encoded);
}

void MetadataResponder::reply_encoded(std::span<const std::byte> bytes) {
  if (server_ == nullptr) std::abort();
  std::exchange(server_, nullptr)->answer_metadata(slot_, bytes);
}

void DataResponder::reply(int error, std::uint32_t offset, std::uint32_t length) {
  if (server_ == nullptr) std::abort();
  std::exchange(server_, nullptr)
      ->answer_data(
          slot_,
          {.request_id = 0, .error = error, .offset = offset, .length = length, .reserved = 0}, {},
          {});
}

void DataResponder::reply_bulk(std::span<const std::byte> bulk, Release release) {
  if (server_ == nullptr || bulk.size() > kMaxBulk) std::abort();
  std::exchange(server_, nullptr)
      ->answer_data(slot_,
                    {.request_id = 0,
                     .error = 0,
                     .offset = 0,
                     .length = static_cast<std::uint32_t>(bulk.size()),
                     .reserved = 0},
                    bulk, release);
}

ServerImpl::Slot& ServerImpl::answering(std::uint32_t index) {
  Slot& slot = slots_.at(index);
  if (slot.state != Slot::State::handling) std::abort();
  return slot;
}

void ServerImpl::answer_dropped(std::uint32_t index) {
  if (answering(index).metadata)
    answer_metadata(index, *encode_reply(error_reply(EIO)));
  else
    answer_data(index, {.request_id = 0, .error = EIO, .offset = 0, .length = 0, .reserved = 0}, {},
                {});
}

void ServerImpl::answer_metadata(std::uint32_t index, std::span<const std::byte> bytes) {
  Slot& slot = answering(index);
  if (slot.connection->doomed) return free_slot(slot);
  slot.bytes.assign(bytes.begin(), bytes.end());
  send(slot, wire::kMetadataReply, sizeof slot.header.head, slot.bytes);
}

void ServerImpl::answer_data(std::uint32_t index, const DataReply& reply,
                             std::span<const std::byte> bulk, Release release) {
  Slot& slot = answering(index);
  slot.release = release;
  if (slot.connection->doomed) return free_slot(slot);
  slot.header.reply = reply;
  slot.header.reply.request_id = slot.request.request_id;
  send(slot, wire::kDataReply, sizeof slot.header, bulk);
}

void ServerImpl::send(Slot& slot, unsigned id, std::size_t header_length,
                      std::span<const std::byte> payload) {
  slot.header.head = {slot.connection->peer_token, slot.call};
  slot.state = Slot::State::sending;
  --slot.connection->unanswered;
  ++counters_.replies;
  ucp_request_param_t param{};
  param.op_attr_mask =
      UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
  param.flags = payload.size() <= wire::kEagerMax ? UCP_AM_SEND_FLAG_EAGER : UCP_AM_SEND_FLAG_RNDV;
  param.user_data = &slot;
  param.cb.send = [](void* request, ucs_status_t status, void* argument) {
    auto& s = *static_cast<Slot*>(argument);
    ucp_request_free(request);
    if (status != UCS_OK) s.server->doom(*s.connection);
    s.server->free_slot(s);
  };
  const ucs_status_ptr_t request =
      ucp_am_send_nbx(slot.connection->endpoint, id, &slot.header, header_length, payload.data(),
                      payload.size(), &param);
  if (UCS_PTR_IS_PTR(request)) return;
  if (UCS_PTR_IS_ERR(request)) doom(*slot.connection);
  free_slot(slot);
}

}  // namespace distfuse::rpc
