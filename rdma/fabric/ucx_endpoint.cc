// SPDX-License-Identifier: Apache-2.0
#include "rdma/fabric/ucx_endpoint.h"

#include <atomic>
#include <cstring>

#include "rdma/fabric/ucx_context.h"

namespace distfuse::fabric::ucx {

namespace {

bool aligned(const void* a, const void* b) {
  return (reinterpret_cast<std::uintptr_t>(a) | reinterpret_cast<std::uintptr_t>(b)) % 8 == 0;
}

/// Aligned words are never torn: what an HCA promises too, and what the slot's lock word needs.
void copy_in(std::byte* local, std::byte* shared, std::size_t length) {
  std::size_t at = 0;
  if (aligned(local, shared)) {
    for (; at + 8 <= length; at += 8) {
      const std::uint64_t word = std::atomic_ref(*reinterpret_cast<std::uint64_t*>(shared + at))
                                     .load(std::memory_order_acquire);
      std::memcpy(local + at, &word, 8);
    }
  }
  for (; at < length; ++at) {
    local[at] =
        static_cast<std::byte>(std::atomic_ref(*reinterpret_cast<unsigned char*>(shared + at))
                                   .load(std::memory_order_acquire));
  }
}

void copy_out(std::byte* shared, const std::byte* local, std::size_t length) {
  std::size_t at = 0;
  if (aligned(local, shared)) {
    for (; at + 8 <= length; at += 8) {
      std::uint64_t word = 0;
      std::memcpy(&word, local + at, 8);
      std::atomic_ref(*reinterpret_cast<std::uint64_t*>(shared + at))
          .store(word, std::memory_order_release);
    }
  }
  for (; at < length; ++at) {
    std::atomic_ref(*reinterpret_cast<unsigned char*>(shared + at))
        .store(static_cast<unsigned char>(local[at]), std::memory_order_release);
  }
}

void run_operation(std::byte* base, const Operation& op) {
  std::byte* shared = base + op.offset;
  if (op.op == Op::read) return copy_in(op.local, shared, op.length);
  if (op.op == Op::write) return copy_out(shared, op.local, op.length);
  std::atomic_ref word(*reinterpret_cast<std::uint64_t*>(shared));
  std::uint64_t old = op.expected;
  if (op.op == Op::fetch_add) {
    old = word.fetch_add(op.operand);
  } else {
    (void)word.compare_exchange_strong(old, op.operand);
  }
  std::memcpy(op.local, &old, sizeof(old));
}

}  // namespace

void run_chain(std::byte* base, std::span<const Operation> chain) {
  for (const auto& op : chain) {
    run_operation(base, op);
    // ORDER: a plain store may pass a later load; the next operation must come after this one for everyone.
    if (op.op == Op::write) std::atomic_thread_fence(std::memory_order_seq_cst);
  }
}

Result<std::unique_ptr<Endpoint>> Endpoint::map(ucp_worker_h worker, const Accept& peer) {
  std::unique_ptr<Endpoint> endpoint(new Endpoint);
  // UCX 1.13's shared-memory transports have no peer error handling; nothing is sent over this endpoint, it only maps.
  DISTFUSE_TRY(endpoint->open(worker, peer, UCP_ERR_HANDLING_MODE_NONE));
  void* base = nullptr;
  void* gate = nullptr;
  auto status = ucp_rkey_ptr(endpoint->rkey_, peer.region_address, &base);
  if (status == UCS_OK) status = ucp_rkey_ptr(endpoint->rkey_, peer.gate_address, &gate);
  if (status != UCS_OK) return ucx_failure("cannot map the peer's region", status);
  endpoint->base_ = static_cast<std::byte*>(base);
  endpoint->gate_ = static_cast<std::uint64_t*>(gate);
  return endpoint;
}

Result<std::unique_ptr<Endpoint>> Endpoint::connect(ucp_worker_h worker, const Accept& peer,
                                                    Done done, Failed failed) {
  std::unique_ptr<Endpoint> endpoint(new Endpoint);
  endpoint->done_ = std::move(done);
  endpoint->failed_ = std::move(failed);
  DISTFUSE_TRY(endpoint->open(worker, peer, UCP_ERR_HANDLING_MODE_PEER));
  return endpoint;
}

Status Endpoint::open(ucp_worker_h worker, const Accept& peer, ucp_err_handling_mode_t mode) {
  ucp_ep_params_t params{};
  params.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                      UCP_EP_PARAM_FIELD_ERR_HANDLER;
  params.address = reinterpret_cast<const ucp_address_t*>(peer.worker.data());
  params.err_mode = mode;
  params.err_handler.cb = on_error;
  params.err_handler.arg = this;
  auto status = ucp_ep_create(worker, &params, &ep_);
  if (status != UCS_OK) {
    ep_ = nullptr;
    return ucx_failure("endpoint", status);
  }
  force_ = mode == UCP_ERR_HANDLING_MODE_PEER;
  remote_ = peer.region_address;
  status = ucp_ep_rkey_unpack(ep_, peer.rkey.data(), &rkey_);
  if (status != UCS_OK) {
    rkey_ = nullptr;
    return ucx_failure("memory key", status);
  }
  return {};
}

Endpoint::~Endpoint() {
  close();
  if (close_request_ != nullptr && !UCS_PTR_IS_ERR(close_request_)) {
    ucp_request_free(close_request_);
  }
}

void Endpoint::close() {
  if (closing_) return;
  closing_ = true;
  queue_.clear();
  if (rkey_ != nullptr) ucp_rkey_destroy(rkey_);
  rkey_ = nullptr;
  base_ = nullptr;
  if (ep_ == nullptr) return;
  ucp_request_param_t param{};
  if (force_) {
    param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
    param.flags = UCP_EP_CLOSE_FLAG_FORCE;
  }
  close_request_ = ucp_ep_close_nbx(ep_, &param);
  ep_ = nullptr;
}

bool Endpoint::closed() {
  if (in_flight_) return false;
  if (close_request_ == nullptr || UCS_PTR_IS_ERR(close_request_)) return true;
  if (ucp_request_check_status(close_request_) == UCS_INPROGRESS) return false;
  ucp_request_free(close_request_);
  close_request_ = nullptr;
  return true;
}

bool Endpoint::run(std::span<const Operation> chain) {
  if (std::atomic_ref(*gate_).load(std::memory_order_acquire) != 1) return false;
  run_chain(base_, chain);
  return true;
}

void Endpoint::post(std::span<const Operation> chain, std::uint64_t cookie) {
  auto& queued = queue_.emplace_back();
  std::copy(chain.begin(), chain.end(), queued.operations.begin());
  queued.count = chain.size();
  queued.cookie = cookie;
  if (!in_flight_) advance();
}

void Endpoint::advance() {
  while (!broken_ && !closing_ && !queue_.empty()) {
    const auto request = issue(queue_.front());
    if (UCS_PTR_IS_ERR(request)) return fail(UCS_PTR_STATUS(request));
    if (request != nullptr) {
      in_flight_ = true;
      return;
    }
    step_done(UCS_OK);
  }
}

ucs_status_ptr_t Endpoint::issue(Chain& chain) {
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
  param.cb.send = on_step;
  param.user_data = this;
  const auto& op = chain.operations[chain.next];
  const std::uint64_t remote = remote_ + op.offset;
  if (chain.flushing) return ucp_ep_flush_nbx(ep_, &param);
  if (op.op == Op::read) return ucp_get_nbx(ep_, op.local, op.length, remote, rkey_, &param);
  if (op.op == Op::write) return ucp_put_nbx(ep_, op.local, op.length, remote, rkey_, &param);
  param.op_attr_mask |= UCP_OP_ATTR_FIELD_DATATYPE | UCP_OP_ATTR_FIELD_REPLY_BUFFER;
  param.datatype = ucp_dt_make_contig(8);
  param.reply_buffer = op.local;
  if (op.op == Op::fetch_add) {
    operand_ = op.operand;
    return ucp_atomic_op_nbx(ep_, UCP_ATOMIC_OP_ADD, &operand_, 1, remote, rkey_, &param);
  }
  // The reply buffer carries the new value there and the old one back.
  operand_ = op.expected;
  std::memcpy(op.local, &op.operand, sizeof(op.operand));
  return ucp_atomic_op_nbx(ep_, UCP_ATOMIC_OP_CSWAP, &operand_, 1, remote, rkey_, &param);
}

void Endpoint::step_done(ucs_status_t status) {
  if (closing_ || broken_) return;
  if (status != UCS_OK) return fail(status);
  auto& chain = queue_.front();
  if (chain.operations[chain.next].op == Op::write && !chain.flushing) {
    chain.flushing = true;
    return;
  }
  chain.flushing = false;
  if (++chain.next < chain.count) return;
  const auto cookie = chain.cookie;
  queue_.pop_front();
  done_(cookie);
}

void Endpoint::on_step(void* request, ucs_status_t status, void* self) {
  auto* endpoint = static_cast<Endpoint*>(self);
  ucp_request_free(request);
  endpoint->in_flight_ = false;
  endpoint->step_done(status);
  endpoint->advance();
}

void Endpoint::on_error(void* self, ucp_ep_h, ucs_status_t status) {
  static_cast<Endpoint*>(self)->fail(status);
}

void Endpoint::fail(ucs_status_t status) {
  if (closing_ || broken_) return;
  broken_ = true;
  if (failed_) failed_(ucx_failure("one-sided operation", status));
}

}  // namespace distfuse::fabric::ucx
