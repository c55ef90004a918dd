// SPDX-License-Identifier: Apache-2.0
#include "rdma/fabric/verbs_queue_pair.h"

#include <arpa/inet.h>

#include <algorithm>
#include <cerrno>

namespace distfuse::fabric::verbs {

namespace {

// Immediate data of a send: is it a message, and the credits that it returns.
constexpr std::uint32_t kIsMessage = 1U << 31;
constexpr std::uint32_t kCreditMask = 0xffff;

ibv_sge local_part(const void* memory, std::size_t length, std::uint32_t key) {
  return {reinterpret_cast<std::uintptr_t>(memory), static_cast<std::uint32_t>(length), key};
}

Count kind_of(ibv_wr_opcode opcode) {
  switch (opcode) {
    case IBV_WR_RDMA_READ:
      return Count::reads;
    case IBV_WR_RDMA_WRITE:
      return Count::writes;
    case IBV_WR_SEND_WITH_IMM:
      return Count::sends;
    default:
      return Count::atomics;
  }
}

}  // namespace

Result<std::unique_ptr<QueuePair>> QueuePair::create(std::shared_ptr<Device> device,
                                                     CounterCell& counted,
                                                     ibv_comp_channel* channel, void* context,
                                                     rdma_cm_id* id) {
  std::unique_ptr<QueuePair> made(new QueuePair(std::move(device), counted, id));
  DISTFUSE_TRY(made->open(channel, context));
  return made;
}

Status QueuePair::open(ibv_comp_channel* channel, void* context) {
  const auto& calls = device_->calls;
  auto receives = Registered::create(device_, kReceiveQueue * kMaxMessage, IBV_ACCESS_LOCAL_WRITE);
  if (!receives) return receives.error();
  receive_buffers_ = std::move(*receives);
  auto sends = Registered::create(device_, kCredits * kMaxMessage, IBV_ACCESS_LOCAL_WRITE);
  if (!sends) return sends.error();
  send_buffers_ = std::move(*sends);
  for (std::uint32_t i = kCredits; i > 0; --i) free_sends_.push_back(i - 1);

  cq_ = calls.create_cq(device_->context, static_cast<int>(kSendQueue + kReceiveQueue), context,
                        channel, 0);
  if (cq_ == nullptr) return system_failure("completion queue");
  ibv_qp_init_attr attributes{};
  attributes.send_cq = cq_;
  attributes.recv_cq = cq_;
  attributes.qp_type = IBV_QPT_RC;
  attributes.cap.max_send_wr = kSendQueue;
  attributes.cap.max_recv_wr = kReceiveQueue;
  attributes.cap.max_send_sge = 1;
  attributes.cap.max_recv_sge = 1;
  attributes.cap.max_inline_data = kInline;
  if (id_ != nullptr) {
    if (calls.create_cm_qp(id_, device_->pd, &attributes) != 0) return system_failure("queue pair");
    qp_ = id_->qp;
  } else {
    qp_ = calls.create_qp(device_->pd, &attributes);
    if (qp_ == nullptr) return system_failure("queue pair");
  }
  inline_ = attributes.cap.max_inline_data;
  // ORDER: before the connection exists, so that the peer's first message finds a slot.
  for (std::uint32_t slot = 0; id_ != nullptr && slot < kReceiveQueue; ++slot) {
    DISTFUSE_TRY(post_receive(slot));
  }
  return {};
}

QueuePair::~QueuePair() {
  const auto& calls = device_->calls;
  if (qp_ != nullptr) {
    if (id_ != nullptr) {
      calls.destroy_cm_qp(id_);
    } else {
      (void)calls.destroy_qp(qp_);
    }
  }
  if (cq_ != nullptr) (void)calls.destroy_cq(cq_);
}

Status QueuePair::post_receive(std::uint32_t slot) {
  auto* buffer = receive_buffers_->bytes().data() + slot * kMaxMessage;
  auto part = local_part(buffer, kMaxMessage, receive_buffers_->lkey());
  ibv_recv_wr request{};
  request.wr_id = WrId{WrId::Kind::receive, slot}.pack();
  request.sg_list = &part;
  request.num_sge = 1;
  ibv_recv_wr* bad = nullptr;
  const int code = device_->calls.post_recv(qp_, &request, &bad);
  if (code != 0) return Error{code, "post_recv failed"};
  counted_.add(Count::receives);
  return {};
}

Status QueuePair::post(ibv_send_wr* request) {
  ibv_send_wr* bad = nullptr;
  const int code = device_->calls.post_send(qp_, request, &bad);
  if (code != 0) return failure(code, "post_send");
  counted_.add(Count::doorbells);
  for (; request != nullptr; request = request->next) counted_.add(kind_of(request->opcode));
  return {};
}

Status QueuePair::post_chain(std::span<const Operation> chain, Keys keys,
                             const RemoteRegion& remote, std::uint64_t cookie) {
  // Only what is used is written: together they are a kilobyte.
  std::array<ibv_send_wr, kMaxChain> requests;  // NOLINT(cppcoreguidelines-pro-type-member-init)
  std::array<ibv_sge, kMaxChain> parts;         // NOLINT(cppcoreguidelines-pro-type-member-init)
  bool behind_reads = !posted_.empty();
  for (std::size_t i = 0; i < chain.size(); ++i) {
    const auto& op = chain[i];
    auto& request = requests[i];
    request = ibv_send_wr{};
    const bool last = i + 1 == chain.size();
    const bool atomic = op.op == Op::compare_swap || op.op == Op::fetch_add;
    const std::uint64_t there = remote.address + op.offset;
    parts[i] = local_part(op.local, atomic ? 8 : op.length, keys[i]);
    request.wr_id = WrId{last ? WrId::Kind::chain : WrId::Kind::chain_step}.pack();
    request.next = last ? nullptr : &requests[i + 1];
    request.sg_list = &parts[i];
    request.num_sge =
        parts[i].length == 0 ? 0 : 1;  // A part of length 0 means 2 GiB to some devices.
    if (last) request.send_flags = IBV_SEND_SIGNALED;
    if (atomic) {
      behind_reads = true;
      request.opcode =
          op.op == Op::fetch_add ? IBV_WR_ATOMIC_FETCH_AND_ADD : IBV_WR_ATOMIC_CMP_AND_SWP;
      request.wr.atomic.remote_addr = there;
      request.wr.atomic.rkey = remote.rkey;
      request.wr.atomic.compare_add = op.op == Op::fetch_add ? op.operand : op.expected;
      request.wr.atomic.swap = op.op == Op::fetch_add ? 0 : op.operand;
      continue;
    }
    request.opcode = op.op == Op::read ? IBV_WR_RDMA_READ : IBV_WR_RDMA_WRITE;
    request.wr.rdma.remote_addr = there;
    request.wr.rdma.rkey = remote.rkey;
    if (op.op == Op::read) {
      behind_reads = true;
      continue;
    }
    // ORDER: RC lets a WRITE take effect before READs and atomics posted ahead of it; the fence waits for their answers.
    // All other pairs are in order by themselves. It covers the chains before this one, too. None where there is nothing to wait for:
    // soft-RoCE, when it sends a fenced WRITE again, waits for the atomic behind it, which waits for the WRITE.
    if (behind_reads) request.send_flags |= IBV_SEND_FENCE;
    if (op.length <= inline_) request.send_flags |= IBV_SEND_INLINE;
  }
  DISTFUSE_TRY(post(requests.data()));
  posted_.push_back(cookie);
  return {};
}

Status QueuePair::post_message(std::span<const std::byte> message) {
  if (credits_ == 0 || free_sends_.empty()) return Error{EAGAIN, "no credit to send"};
  const auto slot = free_sends_.back();
  auto* buffer = send_buffers_->bytes().data() + slot * kMaxMessage;
  if (!message.empty()) std::memcpy(buffer, message.data(), message.size());
  auto part = local_part(buffer, message.size(), send_buffers_->lkey());
  ibv_send_wr request{};
  request.wr_id = WrId{WrId::Kind::message, slot}.pack();
  request.sg_list = &part;
  request.num_sge = message.empty() ? 0 : 1;
  request.opcode = IBV_WR_SEND_WITH_IMM;
  request.imm_data = htonl(kIsMessage | owed_);
  request.send_flags = IBV_SEND_SIGNALED;
  if (message.size() <= inline_) request.send_flags |= IBV_SEND_INLINE;
  DISTFUSE_TRY(post(&request));
  free_sends_.pop_back();
  --credits_;
  owed_ = 0;
  return {};
}

/// Tells the peer of what it may send again, when that is much and no message of ours has told it.
Status QueuePair::return_credits() {
  if (owed_ < kCredits / 2 || credit_sends_ >= kCreditSends) return {};
  ibv_send_wr request{};
  request.wr_id = WrId{WrId::Kind::credit}.pack();
  request.opcode = IBV_WR_SEND_WITH_IMM;
  request.imm_data = htonl(owed_);
  request.send_flags = IBV_SEND_SIGNALED;
  DISTFUSE_TRY(post(&request));
  ++credit_sends_;
  owed_ = 0;
  return {};
}

Status QueuePair::consumed(std::uint32_t slot) {
  DISTFUSE_TRY(post_receive(slot));
  // ORDER: the slot is back before its credit is.
  ++owed_;
  return return_credits();
}

QueuePair::Outcome QueuePair::absorb(const ibv_wc& completion) {
  Outcome outcome;
  const auto id = WrId::unpack(completion.wr_id);
  if (completion.status != IBV_WC_SUCCESS) {
    outcome.kind = Outcome::Kind::broken;
    // A retry that ran out says nothing about the peer; its end comes as an event of the connection manager.
    outcome.error =
        Error{EIO, std::string("queue pair: ") + device_->calls.wc_status_str(completion.status)};
    return outcome;
  }
  if (id.kind == WrId::Kind::receive) return receive(completion, id.slot);
  if (id.kind == WrId::Kind::message) free_sends_.push_back(id.slot);
  if (id.kind == WrId::Kind::credit) {
    --credit_sends_;
    if (auto status = return_credits(); !status) {
      outcome.kind = Outcome::Kind::broken;
      outcome.error = status.error();
    }
  }
  if (id.kind == WrId::Kind::chain) {
    if (posted_.empty()) std::abort();  // A completion of nothing: our own count is broken.
    outcome.kind = Outcome::Kind::chain;
    outcome.cookie = posted_.front();
    posted_.pop_front();
  }
  return outcome;
}

QueuePair::Outcome QueuePair::receive(const ibv_wc& completion, std::uint32_t slot) {
  Outcome outcome;
  const std::uint32_t word = ntohl(completion.imm_data);
  const std::uint32_t returned = word & kCreditMask;
  const bool is_message = (word & kIsMessage) != 0;
  const bool sane = (completion.wc_flags & IBV_WC_WITH_IMM) != 0 &&
                    (word & ~(kIsMessage | kCreditMask)) == 0 && returned <= kCredits - credits_ &&
                    completion.byte_len <= kMaxMessage && (is_message || completion.byte_len == 0);
  if (!sane) {
    outcome.kind = Outcome::Kind::broken;
    outcome.error = Error{EPROTO, "malformed message"};
    return outcome;
  }
  credits_ += returned;
  if (!is_message) {
    if (auto status = post_receive(slot); !status) {
      outcome.kind = Outcome::Kind::broken;
      outcome.error = status.error();
    }
    return outcome;
  }
  outcome.kind = Outcome::Kind::message;
  outcome.message = {receive_buffers_->bytes().data() + slot * kMaxMessage, completion.byte_len};
  outcome.slot = slot;
  return outcome;
}

int QueuePair::poll(std::span<ibv_wc> completions) {
  const int n =
      device_->calls.poll_cq(cq_, static_cast<int>(completions.size()), completions.data());
  if (n > 0) counted_.add(Count::completions, static_cast<std::uint64_t>(n));
  return n;
}

bool QueuePair::arm() {
  return device_->calls.req_notify_cq(cq_, 0) == 0;
}

void QueuePair::stop() {
  ibv_qp_attr attributes{};
  attributes.qp_state = IBV_QPS_ERR;
  (void)device_->calls.modify_qp(qp_, &attributes, IBV_QP_STATE);
}

}  // namespace distfuse::fabric::verbs
