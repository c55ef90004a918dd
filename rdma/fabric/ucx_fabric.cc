// SPDX-License-Identifier: Apache-2.0
// The `ucx` fabric: for a machine, or machines, without an RDMA device.
//
// Parties: a listening worker with regions, and workers that connect. Each connection is a TCP stream of our own (ucx_wire.h says
// the frames) that carries the handshake, messages and liveness, and, where the connecting process is on the region's
// machine, a mapping of the region made by UCX.
//
// Chains. Mapped (Hello and Accept agree on the host: boot id, namespaces, user): the connecting CPU runs the chain inside post()
// with its own loads, stores and atomics. No packet, no system call, and the target's process may sleep or be stopped.
// Not mapped: one ChainRequest, which the target's CPU runs in progress() and answers; the same atomics on the same words, so
// that mapped peers, unmapped ones and the owner's loopback agree. Serialised by: words by the memory system; chains of a
// connection by its stream and by post() running one at a time; messages by the stream.
//
// States of a connection: connecting (TCP) → greeting (Hello sent) → established → ended. Of a caller: silent → asked (the handler
// has its request) → accepted or dismissed.
//
// Recovery: none. A dead process's streams are closed by its kernel, so a peer hears of it within milliseconds (seen: 0.3 to 16); a machine that
// vanishes is noticed by the layer above (lease). A destroyed connection closes its gate, a word behind the region that a
// mapped peer reads before each chain, and so it changes nothing more even if it has not looked at its stream yet.
//
// Limits: 256 callers without a Hello at a time and 5 s for each, 64 chains and 64 messages queued per connection, 8,192
// connections that map one region. A malformed frame, one out of place, and a chain outside the region cost the peer its connection.
//
// Known weakness: a mapping is not a queue pair. A client that is stopped between its look at the gate and its chain and goes on after
// the fence runs that chain; and a client that means harm can write anywhere in the region (over RDMA it can too, while
// connected). A client believes its server: a forged UCP address in an Accept makes UCX 1.13 abort.
//
// What UCX 1.13.1 was seen to do, and why so little of it is used:
// - ucp_listener: 150 bytes of noise behind a well-formed length make ucp_ep_create abort the listening process
//   (`*addr_version == UCP_OBJECT_VERSION_V2`). So the listener is ours.
// - posix and sysv offer no peer error handling; an endpoint with UCP_ERR_HANDLING_MODE_PEER gets tcp (and cma) only, one
//   without it cannot be closed by force. ucp_rkey_ptr on memory of UCP_MEM_MAP_ALLOCATE needs neither: nothing is sent.
// - posix, sysv: fetch-and-add, get and put on a process that sleeps complete: one fetch_add 62 ns, fetch_add + READ 128 + WRITE 1
//   85 ns, a million of them and the target's CPU time does not move.
// - UCP's emulation over tcp needs the target's progress, wants a flush after each put and a wait after each get to be in order
//   (90 µs a chain; a ChainRequest: 8.5 µs), aborts in ucp_worker_destroy when a peer left during wire-up
//   (`got REP message`), and writes wherever a peer's packet tells it to. So chains that cannot be mapped go over our stream.
// - With shared memory alone a worker opens no port. UCX's signal handlers are switched off. It patches mmap and madvise of
//   the process when it is loaded, which only UCX_MEM_EVENTS=n in the environment prevents; ThreadSanitizer needs that.
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
    const char* how =
        context_->handle() != nullptr
            ? ": peers of this machine by shared memory, without their CPU; others over TCP"
            : ": all peers over TCP";
    return std::string("ucx ") + ucp_get_version_string() + how;
  }

 private:
  std::shared_ptr<Context> context_;
};

}  // namespace

Result<std::unique_ptr<Fabric>> open_ucx() {
  auto context = Context::create();
  if (!context) return context.error();
  return std::unique_ptr<Fabric>(std::make_unique<UcxFabric>(std::move(*context)));
}

}  // namespace distfuse::fabric::ucx
