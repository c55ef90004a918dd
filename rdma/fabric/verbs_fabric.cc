// SPDX-License-Identifier: Apache-2.0
// The `verbs` fabric: RC queue pairs over InfiniBand, RoCE or soft-RoCE, connected by librdmacm.
//
// Parties: a listening worker with regions, and workers that connect. One queue pair a connection, with a completion queue of its own;
// one event channel (rdma_cm) and one completion channel a worker.
//
// Messages of the handshake: REQ with the user's private data alone (56 bytes, padded with zeros); REP with the region's address, key
// and length and the user's data (verbs_handshake.h); REJ with the reason as text.
//
// States of a connection: resolving (address, route) → connecting (REQ sent) → established → ended; of an accepted one:
// accepted (REP sent) → established → ended.
//
// Chains: one linked list of work requests, the last one signalled. Order at the target is RC's, with a fence on each WRITE that has
// something to overtake: the one pair that RC leaves open is READ or atomic, then WRITE. Messages: credits (verbs_queue_pair.h). Atomics are the device's;
// the owner of a region uses connect_loopback, two queue pairs of the same device.
//
// Recovery: none. An error completion, or the peer's disconnect, stops the queue pair, then the posted chains are given back as failed.
// Of a failure the peer is not told before the connection is destroyed: lockd would take it for an end by will (session.h, Loss).
// A dead machine is noticed by a pending request after 6 retries (1.9 s where the kernel lets us set the ack timeout),
// and by an idle connection never: that is the lease's business. Destroying a connection destroys the queue pair, and so fences.
//
// Limits: a caller whose path MTU is larger than that of our port is refused. 256 callers unanswered; connect has a deadline of its own, because rdma_cm takes more than a minute.
//
// Known weakness: rkeys are per region, not per connection: a client that was shut out could use another live queue pair of its
// own, if it has one. soft-RoCE's atomics are not atomic with the CPU's.
#include "rdma/fabric/verbs_fabric.h"

#include "rdma/fabric/verbs_worker.h"

namespace distfuse::fabric::verbs {

namespace {

class VerbsFabric : public Fabric {
 public:
  explicit VerbsFabric(std::shared_ptr<Device> device) : device_(std::move(device)) {}

  Result<std::unique_ptr<Worker>> create_worker(Handler& handler) override {
    auto worker = VerbsWorker::create(device_, handler);
    if (!worker) return worker.error();
    return std::unique_ptr<Worker>(std::move(*worker));
  }

  Result<std::unique_ptr<Region>> create_region(std::size_t length) override {
    auto memory = Registered::create(device_, length,
                                     IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ |
                                         IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_ATOMIC);
    if (!memory) return memory.error();
    return std::unique_ptr<Region>(std::make_unique<VerbsRegion>(std::move(*memory)));
  }

  std::string describe() const override {
    return "verbs on " + device_->name +
           ": one-sided operations by the device, without the target's CPU";
  }

 private:
  std::shared_ptr<Device> device_;
};

}  // namespace

Result<std::unique_ptr<Fabric>> open_verbs(const Options& options, const VerbsTable& table) {
  auto device = Device::open(table, options.device);
  if (!device) return device.error();
  return std::unique_ptr<Fabric>(std::make_unique<VerbsFabric>(std::move(*device)));
}

}  // namespace distfuse::fabric::verbs
