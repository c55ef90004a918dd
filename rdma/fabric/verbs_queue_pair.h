// SPDX-License-Identifier: Apache-2.0
// An RC queue pair with its completion queue and message buffers: chains out, messages both ways under credits. No events,
// no connection: verbs_worker.cc has those.
//
// Credits. Each side has kCredits receive slots for the other's messages and may send only while it has credits; a consumed message's
// credit travels back in the immediate data of the next message, or, when half of them are owed, in a send without content.
// So a receiver is never without a slot (RNR), except to a peer that breaks the protocol, and that peer fails.
//
// Sizes, term by term:
//   send queue     kMaxOutstanding × kMaxChain  operations of chains
//                + kCredits                     messages: one slot and one credit each
//                + kCreditSends                 credit returns under way
//   receive queue  kCredits                     messages
//                + kCreditSends                 credit returns: each carries ≥ kCredits / 2, so no more than two wait here
//                                               unconsumed; twice that, because our side may see a completion late
//   completions    send queue + receive queue   only last operations are signalled, but after an error all are flushed
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "rdma/fabric/verbs_counters.h"
#include "rdma/fabric/verbs_device.h"

namespace distfuse::fabric::verbs {

inline constexpr std::uint32_t kCredits = 64;
inline constexpr std::uint32_t kCreditSends = 4;
inline constexpr std::uint32_t kSendQueue =
    static_cast<std::uint32_t>(kMaxOutstanding * kMaxChain) + kCredits + kCreditSends;
inline constexpr std::uint32_t kReceiveQueue = kCredits + kCreditSends;
inline constexpr std::uint32_t kInline = 128;

/// What a completion is of.
struct WrId {
  enum class Kind : std::uint8_t {
    chain_step = 1,
    chain = 2,
    message = 3,
    credit = 4,
    receive = 5
  };
  Kind kind;
  std::uint32_t slot = 0;  ///< message, receive: the buffer.
  [[nodiscard]] std::uint64_t pack() const { return static_cast<std::uint64_t>(kind) << 56 | slot; }
  static WrId unpack(std::uint64_t id) {
    return {static_cast<Kind>(id >> 56), static_cast<std::uint32_t>(id)};
  }
};

struct RemoteRegion {
  std::uint64_t address = 0;
  std::uint64_t length = 0;
  std::uint32_t rkey = 0;
};

class QueuePair {
 public:
  /// With `id`: of a connection, made through librdmacm. Without: to be connected by hand.
  /// `counted` outlives it.
  static Result<std::unique_ptr<QueuePair>> create(std::shared_ptr<Device> device,
                                                   CounterCell& counted, ibv_comp_channel* channel,
                                                   void* context, rdma_cm_id* id);
  ~QueuePair();
  QueuePair(const QueuePair&) = delete;
  QueuePair& operator=(const QueuePair&) = delete;

  /// One operation's local key.
  using Keys = std::span<const std::uint32_t>;
  /// The chain is valid and there is room for it. Error: the queue pair is of no more use.
  [[nodiscard]] Status post_chain(std::span<const Operation> chain, Keys keys,
                                  const RemoteRegion& remote, std::uint64_t cookie);
  /// EAGAIN: no credit.
  [[nodiscard]] Status post_message(std::span<const std::byte> message);

  struct Outcome {
    enum class Kind { nothing, chain, message, broken } kind = Kind::nothing;
    std::uint64_t cookie = 0;            // chain
    std::span<const std::byte> message;  // until consumed(slot)
    std::uint32_t slot = 0;
    std::optional<Error> error;  // broken
  };
  [[nodiscard]] Outcome absorb(const ibv_wc& completion);
  /// The message in `slot` was handled: its buffer goes back, and its credit is owed.
  [[nodiscard]] Status consumed(std::uint32_t slot);

  [[nodiscard]] int poll(std::span<ibv_wc> completions);
  [[nodiscard]] bool arm();
  /// From here on nothing touches the local memory of chains any more.
  void stop();
  [[nodiscard]] ibv_qp* handle() const { return qp_; }
  [[nodiscard]] ibv_cq* completion_queue() const { return cq_; }
  /// Cookies of chains that are posted and not complete, in order.
  [[nodiscard]] std::deque<std::uint64_t>& posted() { return posted_; }

 private:
  QueuePair(std::shared_ptr<Device> device, CounterCell& counted, rdma_cm_id* id)
      : device_(std::move(device)), counted_(counted), id_(id) {}
  Status open(ibv_comp_channel* channel, void* context);
  Status post_receive(std::uint32_t slot);
  Status return_credits();
  Status post(ibv_send_wr* request);
  Outcome receive(const ibv_wc& completion, std::uint32_t slot);

  std::shared_ptr<Device> device_;
  CounterCell& counted_;
  rdma_cm_id* id_;
  ibv_cq* cq_ = nullptr;
  ibv_qp* qp_ = nullptr;
  std::uint32_t inline_ = 0;
  std::unique_ptr<Registered> receive_buffers_;
  std::unique_ptr<Registered> send_buffers_;
  std::vector<std::uint32_t> free_sends_;
  std::deque<std::uint64_t> posted_;
  std::uint32_t credits_ = kCredits;  // What the peer can still take.
  std::uint32_t owed_ = 0;            // Consumed and not told the peer.
  std::uint32_t credit_sends_ = 0;    // Under way.
};

}  // namespace distfuse::fabric::verbs
