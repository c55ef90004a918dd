// SPDX-License-Identifier: Apache-2.0
// Memory that processes of one machine share through UCX: this process's regions, and its mappings of peers' regions.
#pragma once

#include <ucp/api/ucp.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "rdma/fabric/fabric.h"
#include "rdma/fabric/ucx_wire.h"

namespace distfuse::fabric::ucx {

[[nodiscard]] Error ucx_failure(const std::string& what, ucs_status_t status);

/// UCP for shared memory: it hands out memory that peers of this machine can map, and maps theirs.
class Context {
 public:
  static Result<std::shared_ptr<Context>> create();
  Context() = default;
  ~Context();
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  /// Null: UCX_TLS has no shared memory in it.
  [[nodiscard]] ucp_context_h handle() const { return handle_; }
  [[nodiscard]] const HostId& host() const { return host_; }

 private:
  ucp_context_h handle_ = nullptr;
  HostId host_{};
};

/// A UCP worker and its address.
class UcpWorker {
 public:
  static Result<std::unique_ptr<UcpWorker>> create(ucp_context_h context);
  explicit UcpWorker(ucp_worker_h handle) : handle_(handle) {}
  ~UcpWorker() { ucp_worker_destroy(handle_); }
  UcpWorker(const UcpWorker&) = delete;
  UcpWorker& operator=(const UcpWorker&) = delete;

  [[nodiscard]] ucp_worker_h handle() const { return handle_; }
  [[nodiscard]] const std::vector<std::byte>& address() const { return address_; }

 private:
  ucp_worker_h handle_;
  std::vector<std::byte> address_;
};

/// A region's memory, kept until the last connection that exposes it is gone. Behind the user's bytes is an array of words, the
/// gates: one per connection, 1 while the connection lives. A peer that reaches the memory without our CPU looks at
/// its gate before each chain, so that the end of its connection stops it even before it has read its socket.
class Memory {
 public:
  /// Connections that expose one region at a time: 4 lanes of 2,048 clients; 64 KiB of gates.
  static constexpr std::size_t kGates = 8192;

  static Result<std::shared_ptr<Memory>> create(std::shared_ptr<Context> context,
                                                std::size_t length);
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  [[nodiscard]] std::span<std::byte> bytes() const { return {base_, length_}; }
  /// Empty: the memory cannot be mapped.
  [[nodiscard]] const std::vector<std::byte>& rkey() const { return rkey_; }
  /// Opens a gate; null: none is free. Any thread.
  [[nodiscard]] std::uint64_t* open_gate();
  void close_gate(std::uint64_t* gate);

 private:
  Memory(std::shared_ptr<Context> context, std::size_t length)
      : context_(std::move(context)), length_(length) {}
  Status map();
  Status allocate(std::size_t total);

  std::shared_ptr<Context> context_;
  std::size_t length_;
  ucp_mem_h handle_ = nullptr;  // Null: of this process alone.
  std::byte* base_ = nullptr;
  std::vector<std::byte> rkey_;
  std::mutex mu_;
  std::vector<std::uint64_t*> free_gates_;  // protected by mu_
};

class UcxRegion : public Region {
 public:
  explicit UcxRegion(std::shared_ptr<Memory> memory) : memory_(std::move(memory)) {}
  std::span<std::byte> bytes() override { return memory_->bytes(); }
  [[nodiscard]] const std::shared_ptr<Memory>& memory() const { return memory_; }

 private:
  std::shared_ptr<Memory> memory_;
};

/// A peer's region in our address space, until it is destroyed.
class Mapping {
 public:
  static Result<std::unique_ptr<Mapping>> create(UcpWorker& worker, const Accept& peer);
  ~Mapping();
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  [[nodiscard]] std::byte* base() const { return base_; }
  /// Whether the peer still lets us in.
  [[nodiscard]] bool open() const {
    return std::atomic_ref(*gate_).load(std::memory_order_acquire) == 1;
  }

 private:
  explicit Mapping(ucp_worker_h worker) : worker_(worker) {}
  Status map(const Accept& peer);

  ucp_worker_h worker_;
  ucp_ep_h ep_ = nullptr;
  ucp_rkey_h rkey_ = nullptr;
  std::byte* base_ = nullptr;
  std::uint64_t* gate_ = nullptr;
};

}  // namespace distfuse::fabric::ucx
