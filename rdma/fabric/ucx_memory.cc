// SPDX-License-Identifier: Apache-2.0
#include "rdma/fabric/ucx_memory.h"

#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>

#include "common/ucx_process.h"

namespace distfuse::fabric::ucx {
namespace {

HostId read_host() {
  HostId host{};
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string id;
  if (!std::getline(file, id)) return host;
  std::erase(id, '-');
  for (std::size_t at = 0; at < 16 && 2 * at + 1 < id.size(); ++at) {
    host[at] = static_cast<std::byte>(std::strtoul(id.substr(2 * at, 2).c_str(), nullptr, 16));
  }
  const auto put = [&host](std::size_t at, std::uint64_t value) {
    std::memcpy(host.data() + at, &value, sizeof(value));
  };
  struct stat status {};
  if (::stat("/proc/self/ns/ipc", &status) == 0) put(16, status.st_ino);
  if (::stat("/proc/self/ns/pid", &status) == 0) put(24, status.st_ino);
  put(32, ::geteuid());
  return host;
}

/// The shared-memory transports that UCX_TLS leaves us, as UCX wants them; empty: none.
std::string shared_transports() {
  const char* set = std::getenv("UCX_TLS");  // NOLINT(concurrency-mt-unsafe): nobody sets it
  if (set == nullptr) return "posix,sysv";
  const std::string list = "," + std::string(set) + ",";
  if (list[1] == '^') return "";
  std::string found;
  for (const char* name : {"posix", "sysv"}) {
    if (list.find("," + std::string(name) + ",") != std::string::npos) {
      found += (found.empty() ? "" : ",") + std::string(name);
    }
  }
  for (const char* name : {"all", "shm", "sm", "mm"}) {
    if (list.find("," + std::string(name) + ",") != std::string::npos) return "posix,sysv";
  }
  return found;
}

Result<ucp_context_h> make_context(const std::string& transports) {
  ucp_config_t* config = nullptr;
  auto status = ucp_config_read(nullptr, nullptr, &config);
  if (status != UCS_OK) return ucx_failure("UCX configuration", status);
  const std::unique_ptr<ucp_config_t, void (*)(ucp_config_t*)> owner(config, ucp_config_release);
  status = ucp_config_modify(config, "TLS", transports.c_str());
  if (status != UCS_OK) return ucx_failure("UCX refuses TLS=" + transports, status);
  ucp_params_t params{};
  params.field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_MT_WORKERS_SHARED;
  params.features = UCP_FEATURE_RMA;
  params.mt_workers_shared = 1;
  ucp_context_h handle = nullptr;
  status = ucp_init(&params, config, &handle);
  if (status != UCS_OK) return ucx_failure("UCX finds none of " + transports, status);
  return handle;
}

}  // namespace

Error ucx_failure(const std::string& what, ucs_status_t status) {
  int code = EIO;
  if (status == UCS_ERR_NO_DEVICE) code = ENODEV;
  if (status == UCS_ERR_NO_MEMORY) code = ENOMEM;
  if (status == UCS_ERR_INVALID_PARAM) code = EINVAL;
  if (status == UCS_ERR_CONNECTION_RESET || status == UCS_ERR_ENDPOINT_TIMEOUT) code = ECONNRESET;
  return Error{code, what + ": " + ucs_status_string(status)};
}

Result<std::shared_ptr<Context>> Context::create() {
  settle_ucx_in_process();
  auto context = std::make_shared<Context>();
  const auto transports = shared_transports();
  if (transports.empty()) {
    // Read all the same: UCX warns of settings that nobody has asked for.
    ucp_config_t* config = nullptr;
    if (ucp_config_read(nullptr, nullptr, &config) == UCS_OK) ucp_config_release(config);
    return context;
  }
  auto handle = make_context(transports);
  if (!handle) return handle.error();
  context->handle_ = *handle;
  context->host_ = read_host();
  return context;
}

Context::~Context() {
  if (handle_ != nullptr) ucp_cleanup(handle_);
}

Result<std::unique_ptr<UcpWorker>> UcpWorker::create(ucp_context_h context) {
  ucp_worker_params_t params{};
  params.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE;
  params.thread_mode = UCS_THREAD_MODE_SERIALIZED;  // One thread at a time; lanes are lent about.
  ucp_worker_h handle = nullptr;
  auto status = ucp_worker_create(context, &params, &handle);
  if (status != UCS_OK) return ucx_failure("UCX worker", status);
  auto worker = std::make_unique<UcpWorker>(handle);
  ucp_address_t* address = nullptr;
  std::size_t length = 0;
  status = ucp_worker_get_address(handle, &address, &length);
  if (status != UCS_OK) return ucx_failure("UCX worker address", status);
  const auto* first = reinterpret_cast<const std::byte*>(address);
  worker->address_.assign(first, first + length);
  ucp_worker_release_address(handle, address);
  if (length > kMaxWorkerAddress) {
    return Error{EIO, "UCX's worker address is longer than the protocol's: name one device"};
  }
  return worker;
}

Result<std::shared_ptr<Memory>> Memory::create(std::shared_ptr<Context> context,
                                               std::size_t length) {
  if (length == 0) return Error{EINVAL, "a region of 0 bytes"};
  std::shared_ptr<Memory> memory(new Memory(std::move(context), length));
  DISTFUSE_TRY(memory->map());
  return memory;
}

Status Memory::map() {
  const std::size_t gates_at = (length_ + 4095) & ~std::size_t{4095};
  const std::size_t total = gates_at + kGates * sizeof(std::uint64_t);
  DISTFUSE_TRY(allocate(total));
  std::memset(base_, 0, total);
  auto* gates = reinterpret_cast<std::uint64_t*>(base_ + gates_at);
  for (std::size_t i = kGates; i > 0; --i) free_gates_.push_back(gates + i - 1);
  return {};
}

Status Memory::allocate(std::size_t total) {
  if (context_->handle() == nullptr) {
    base_ = static_cast<std::byte*>(std::aligned_alloc(4096, (total + 4095) & ~std::size_t{4095}));
    if (base_ == nullptr) return Error{ENOMEM, "no memory for a region"};
    return {};
  }
  ucp_mem_map_params_t params{};
  params.field_mask = UCP_MEM_MAP_PARAM_FIELD_LENGTH | UCP_MEM_MAP_PARAM_FIELD_FLAGS;
  params.length = total;
  params.flags = UCP_MEM_MAP_ALLOCATE;
  auto status = ucp_mem_map(context_->handle(), &params, &handle_);
  if (status != UCS_OK) {
    handle_ = nullptr;
    return ucx_failure("a region of " + std::to_string(length_) + " bytes", status);
  }
  ucp_mem_attr_t attributes{};
  attributes.field_mask = UCP_MEM_ATTR_FIELD_ADDRESS;
  status = ucp_mem_query(handle_, &attributes);
  if (status != UCS_OK) return ucx_failure("memory query", status);
  base_ = static_cast<std::byte*>(attributes.address);
  if (reinterpret_cast<std::uintptr_t>(base_) % 4096 != 0) {
    return Error{ENOMEM, "UCX handed out unaligned memory"};
  }
  void* packed = nullptr;
  std::size_t length = 0;
  status = ucp_rkey_pack(context_->handle(), handle_, &packed, &length);
  if (status != UCS_OK) return ucx_failure("memory key", status);
  const auto* first = static_cast<const std::byte*>(packed);
  rkey_.assign(first, first + length);
  ucp_rkey_buffer_release(packed);
  if (length > kMaxRkey) return Error{EIO, "UCX's memory key is longer than the protocol's"};
  return {};
}

Memory::~Memory() {
  if (handle_ != nullptr) {
    (void)ucp_mem_unmap(context_->handle(), handle_);
  } else {
    std::free(base_);
  }
}

std::uint64_t* Memory::open_gate() {
  const std::lock_guard guard(mu_);
  if (free_gates_.empty()) return nullptr;
  auto* gate = free_gates_.back();
  free_gates_.pop_back();
  std::atomic_ref(*gate).store(1);
  return gate;
}

void Memory::close_gate(std::uint64_t* gate) {
  const std::lock_guard guard(mu_);
  std::atomic_ref(*gate).store(0);
  // To the front of the line it goes last: a slow peer must not find its old gate open for another soon.
  free_gates_.insert(free_gates_.begin(), gate);
}

Result<std::unique_ptr<Mapping>> Mapping::create(UcpWorker& worker, const Accept& peer) {
  std::unique_ptr<Mapping> mapping(new Mapping(worker.handle()));
  DISTFUSE_TRY(mapping->map(peer));
  return mapping;
}

Status Mapping::map(const Accept& peer) {
  ucp_ep_params_t params{};
  params.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS;
  params.address = reinterpret_cast<const ucp_address_t*>(peer.worker.data());
  auto status = ucp_ep_create(worker_, &params, &ep_);
  if (status != UCS_OK) {
    ep_ = nullptr;
    return ucx_failure("endpoint", status);
  }
  status = ucp_ep_rkey_unpack(ep_, peer.rkey.data(), &rkey_);
  if (status != UCS_OK) {
    rkey_ = nullptr;
    return ucx_failure("memory key", status);
  }
  void* base = nullptr;
  void* gate = nullptr;
  status = ucp_rkey_ptr(rkey_, peer.region_address, &base);
  if (status == UCS_OK) status = ucp_rkey_ptr(rkey_, peer.gate_address, &gate);
  if (status != UCS_OK) {
    return ucx_failure("cannot map the peer's region (UCX_TLS=tcp does without)", status);
  }
  base_ = static_cast<std::byte*>(base);
  gate_ = static_cast<std::uint64_t*>(gate);
  return {};
}

Mapping::~Mapping() {
  if (rkey_ != nullptr) ucp_rkey_destroy(rkey_);
  if (ep_ == nullptr) return;
  // Nothing was ever sent over it, so there is nothing to flush, and it closes at once.
  ucp_request_param_t param{};
  const auto request = ucp_ep_close_nbx(ep_, &param);
  if (!UCS_PTR_IS_PTR(request)) return;
  for (int i = 0; i < 1000 && ucp_request_check_status(request) == UCS_INPROGRESS; ++i) {
    (void)ucp_worker_progress(worker_);
  }
  ucp_request_free(request);
}

}  // namespace distfuse::fabric::ucx
