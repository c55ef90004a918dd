// SPDX-License-Identifier: Apache-2.0
#include "lockd/loopback.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

namespace distfuse::lockd {

Result<std::unique_ptr<Loopback>> Loopback::create(fabric::Worker& worker, fabric::Region& table,
                                                   std::size_t max_queued) {
  auto memory = worker.allocate(sizeof(Entry) * fabric::kMaxOutstanding);
  if (!memory.ok()) return memory.error();
  auto connection = worker.connect_loopback(table);
  if (!connection.ok()) return connection.error();
  auto* entries = new (memory->data()) Entry[fabric::kMaxOutstanding];
  return std::unique_ptr<Loopback>(
      new Loopback(std::move(connection).value(), entries, max_queued));
}

Loopback::Loopback(std::unique_ptr<fabric::Connection> connection, Entry* entries,
                   std::size_t max_queued)
    : connection_(std::move(connection)), entries_(entries), max_queued_(max_queued) {
  for (std::size_t i = fabric::kMaxOutstanding; i > 0; --i) free_.push_back(i - 1);
}

void Loopback::post(std::uint64_t cookie, const df_chain& chain) {
  if (queue_.size() >= max_queued_) {
    spdlog::critical("the lock core posted more chains than it has contended slots and waiters");
    std::abort();
  }
  queue_.push_back({cookie, chain});
  pump();
}

void Loopback::pump() {
  while (!queue_.empty() && !free_.empty()) {
    const auto entry = free_.back();
    const auto status = post_now(entry, queue_.front().chain);
    if (!status.ok()) {
      // A loopback has no peer that could fail: without it no slot can change hands safely any more.
      spdlog::critical("the loopback connection failed: {}", status.error().message);
      std::abort();
    }
    const auto& chain = queue_.front().chain;
    in_flight_[entry] = {queue_.front().cookie,
                         std::any_of(chain.op, chain.op + chain.count,
                                     [](const df_op& op) { return op.kind == DF_OP_READ; })};
    free_.pop_back();
    queue_.pop_front();
    ++posted_;
  }
}

Status Loopback::post_now(std::size_t index, const df_chain& chain) {
  auto& entry = entries_[index];
  std::memcpy(entry.bytes.data(), chain.bytes, entry.bytes.size());
  std::array<fabric::Operation, DF_CHAIN_OPS> operations{};
  for (std::size_t i = 0; i < chain.count; ++i) {
    const auto& from = chain.op[i];
    auto& to = operations[i];
    to.offset = from.offset;
    to.length = from.length;
    to.operand = from.operand;
    to.expected = from.expected;
    switch (from.kind) {
      case DF_OP_READ:
        to.op = fabric::Op::read;
        to.local = entry.image.data();
        break;
      case DF_OP_WRITE:
        to.op = fabric::Op::write;
        to.local = entry.bytes.data() + from.data;
        break;
      case DF_OP_CAS:
        to.op = fabric::Op::compare_swap;
        to.local = reinterpret_cast<std::byte*>(&entry.old);
        break;
      default:
        to.op = fabric::Op::fetch_add;
        to.local = reinterpret_cast<std::byte*>(&entry.old);
        break;
    }
  }
  return connection_->post(std::span(operations.data(), chain.count), index);
}

Loopback::Completion Loopback::completed(std::uint64_t index) {
  const auto& entry = entries_[index];
  const Completion completion{in_flight_[index].cookie, entry.old, in_flight_[index].read,
                              entry.image};
  free_.push_back(index);
  pump();
  return completion;
}

}  // namespace distfuse::lockd
