// SPDX-License-Identifier: Apache-2.0
#include "rdma/fabric/verbs_device.h"

#include <cstdlib>

namespace distfuse::fabric::verbs {

Result<std::shared_ptr<Device>> Device::open(const VerbsTable& table, const std::string& name) {
  auto device = std::make_shared<Device>(table);
  int count = 0;
  device->list = table.get_devices(&count);
  for (int i = 0; device->list != nullptr && i < count; ++i) {
    const std::string found = table.get_device_name(device->list[i]->device);
    if (!name.empty() && found != name) continue;
    device->context = device->list[i];
    device->name = found;
    break;
  }
  if (device->context == nullptr) {
    const std::string which = name.empty() ? "no RDMA device" : "no RDMA device '" + name + "'";
    return Error{ENODEV, which +
                             ": load one, e.g. `modprobe rdma_rxe && rdma link add rxe0 type rxe "
                             "netdev eth0`, or use fabric = \"ucx\""};
  }
  if (table.query_device(device->context, &device->attributes) != 0) {
    return system_failure("RDMA device " + device->name);
  }
  if (device->attributes.atomic_cap == IBV_ATOMIC_NONE) {
    return Error{ENODEV, "RDMA device " + device->name + " has no atomics: use fabric = \"ucx\""};
  }
  device->pd = table.alloc_pd(device->context);
  if (device->pd == nullptr) return system_failure("protection domain of " + device->name);
  return device;
}

Device::~Device() {
  if (pd != nullptr) (void)calls.dealloc_pd(pd);
  if (list != nullptr) calls.free_devices(list);
}

Result<std::unique_ptr<Registered>> Registered::create(std::shared_ptr<Device> device,
                                                       std::size_t length, int access) {
  if (length == 0) return Error{EINVAL, "0 bytes to register"};
  const std::size_t rounded = (length + 4095) & ~std::size_t{4095};
  std::unique_ptr<Registered> made(new Registered(std::move(device), length));
  made->memory_ = static_cast<std::byte*>(std::aligned_alloc(4096, rounded));
  if (made->memory_ == nullptr) return Error{ENOMEM, "no memory to register"};
  std::memset(made->memory_, 0, rounded);
  const auto& calls = made->device_->calls;
  made->mr_ = calls.reg_mr(made->device_->pd, made->memory_, rounded, access);
  if (made->mr_ == nullptr) {
    return system_failure("registering " + std::to_string(length) +
                          " bytes (is `ulimit -l` large enough?)");
  }
  return made;
}

Registered::~Registered() {
  if (mr_ != nullptr) (void)device_->calls.dereg_mr(mr_);
  std::free(memory_);
}

}  // namespace distfuse::fabric::verbs
