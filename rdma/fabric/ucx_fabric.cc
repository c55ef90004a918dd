// SPDX-License-Identifier: Apache-2.0
#include "rdma/fabric/ucx_fabric.h"

#include "rdma/fabric/ucx_worker.h"

namespace distfuse::fabric::ucx {

namespace {

class UcxFabric : public Fabric {
 public:
  explicit UcxFabric(std::shared_ptr<Context> context) : context_(std::move(context)) {}

  Result<std::unique_ptr<Worker>> create_worker(Handler& handler) override {
    auto worker = UcxWorker::create(context_, handler);
    if (!worker) return worker.error();
    return std::unique_ptr<Worker>(std::move(*worker));
  }

  Result<std::unique_ptr<Region>> create_region(std::size_t length) override {
    auto memory = Memory::create(context_, length);
    if (!memory) return memory.error();
    return std::unique_ptr<Region>(std::make_unique<UcxRegion>(std::move(*memory)));
  }

  std::string describe() const override {
    return std::string("ucx ") + ucp_get_version_string() +
           ": peers of this machine are reached through shared memory, without their CPU; others "
           "by UCP";
  }

 private:
  std::shared_ptr<Context> context_;
};

}  // namespace

Result<std::unique_ptr<Fabric>> open_ucx(const Options& options) {
  auto context = Context::create(options);
  if (!context) return context.error();
  return std::unique_ptr<Fabric>(std::make_unique<UcxFabric>(std::move(*context)));
}

}  // namespace distfuse::fabric::ucx
