// SPDX-License-Identifier: Apache-2.0
// An RDMA device, its protection domain, and memory registered with it.
#pragma once

#include <cstring>
#include <memory>
#include <span>
#include <string>

#include "rdma/fabric/fabric.h"
#include "rdma/fabric/system_failure.h"
#include "rdma/fabric/verbs_table.h"

namespace distfuse::fabric::verbs {

class Device {
 public:
  /// `name` empty: the first. ENODEV: none.
  static Result<std::shared_ptr<Device>> open(const VerbsTable& table, const std::string& name);
  explicit Device(const VerbsTable& table) : calls(table) {}
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  const VerbsTable& calls;
  ibv_context** list = nullptr;
  ibv_context* context = nullptr;  // One of `list`, shared with librdmacm's ids.
  ibv_pd* pd = nullptr;
  ibv_device_attr attributes{};
  std::string name;
};

/// Zeroed, 4096-aligned memory that the device may read and write.
class Registered {
 public:
  static Result<std::unique_ptr<Registered>> create(std::shared_ptr<Device> device,
                                                    std::size_t length, int access);
  ~Registered();
  Registered(const Registered&) = delete;
  Registered& operator=(const Registered&) = delete;

  [[nodiscard]] std::span<std::byte> bytes() const { return {memory_, length_}; }
  [[nodiscard]] std::uint32_t lkey() const { return mr_->lkey; }
  [[nodiscard]] std::uint32_t rkey() const { return mr_->rkey; }

 private:
  Registered(std::shared_ptr<Device> device, std::size_t length)
      : device_(std::move(device)), length_(length) {}

  std::shared_ptr<Device> device_;
  std::size_t length_;
  std::byte* memory_ = nullptr;
  ibv_mr* mr_ = nullptr;
};

}  // namespace distfuse::fabric::verbs
