// SPDX-License-Identifier: Apache-2.0
#include "rdma/fabric/ucx_context.h"

#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <ucm/api/ucm.h>
#include <ucs/debug/debug.h>
#include <ucs/debug/log_def.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>

namespace distfuse::fabric::ucx {

namespace {

/// UCX's own lines go to our log, once.
ucs_log_func_rc_t log_line(const char*, unsigned, const char*, ucs_log_level_t level,
                           const ucs_log_component_config_t*, const char* format, va_list args) {
  char text[512];
  va_list copy;
  va_copy(copy, args);
  (void)std::vsnprintf(text, sizeof(text), format, copy);
  va_end(copy);
  auto to = spdlog::level::debug;
  if (level <= UCS_LOG_LEVEL_ERROR) to = spdlog::level::err;
  if (level == UCS_LOG_LEVEL_WARN) to = spdlog::level::warn;
  spdlog::log(to, "ucx: {}", text);
  return UCS_LOG_FUNC_RC_STOP;
}

/// What UCX does to a process when it is loaded and that a daemon does not want. The user's environment still wins.
void settle_process() {
  static std::once_flag once;
  std::call_once(once, [] {
    ucs_log_push_handler(log_line);
    // Its handlers for these print a backtrace and hide the core dump (and a sanitizer's report).
    if (std::getenv("UCX_ERROR_SIGNALS") == nullptr) {
      for (const int signal : {SIGILL, SIGSEGV, SIGBUS, SIGFPE}) ucs_debug_disable_signal(signal);
    }
    // Patching mmap and munmap of the process serves the registration cache, which we have no use for.
    if (std::getenv("UCX_MEM_EVENTS") == nullptr) {
      ucm_global_config_t memory = ucm_global_opts;
      memory.enable_events = 0;
      ucm_set_global_opts(&memory);
    }
  });
}

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
  const char* set = std::getenv("UCX_TLS");
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

using Settings = std::vector<std::pair<std::string, std::string>>;

Result<ucp_context_h> make_context(const Settings& settings, std::uint64_t features) {
  ucp_config_t* config = nullptr;
  auto status = ucp_config_read(nullptr, nullptr, &config);
  if (status != UCS_OK) return ucx_failure("UCX configuration", status);
  const std::unique_ptr<ucp_config_t, void (*)(ucp_config_t*)> owner(config, ucp_config_release);
  std::string told;
  for (const auto& [key, value] : settings) {
    status = ucp_config_modify(config, key.c_str(), value.c_str());
    if (status != UCS_OK) return ucx_failure("UCX refuses " + key + "=" + value, status);
    told += " " + key + "=" + value;
  }
  // The CPU's atomics everywhere: shared memory, emulation and the loopback then agree on one word.
  status = ucp_config_modify(config, "ATOMIC_MODE", "cpu");
  if (status != UCS_OK) return ucx_failure("UCX refuses ATOMIC_MODE", status);
  ucp_params_t params{};
  params.field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_MT_WORKERS_SHARED;
  params.features = features;
  params.mt_workers_shared = 1;
  ucp_context_h handle = nullptr;
  status = ucp_init(&params, config, &handle);
  if (status != UCS_OK) return ucx_failure("UCX finds no transport with" + told, status);
  return handle;
}

Status pack(ucp_context_h context, ucp_mem_h memory, std::vector<std::byte>& key) {
  void* packed = nullptr;
  std::size_t length = 0;
  const auto status = ucp_rkey_pack(context, memory, &packed, &length);
  if (status != UCS_OK) return ucx_failure("memory key", status);
  const auto* first = static_cast<const std::byte*>(packed);
  key.assign(first, first + length);
  ucp_rkey_buffer_release(packed);
  if (length > kMaxRkey) return Error{EIO, "UCX's memory key is longer than the protocol's"};
  return {};
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

Result<std::shared_ptr<Context>> Context::create(const Options& options) {
  settle_process();
  auto context = std::make_shared<Context>();
  const auto transports = shared_transports();
  if (!transports.empty()) {
    auto shared = make_context({{"TLS", transports}}, UCP_FEATURE_RMA);
    if (!shared) return shared.error();
    context->shared_ = *shared;
    context->host_ = read_host();
  }
  Settings settings;
  if (!options.device.empty()) settings.emplace_back("NET_DEVICES", options.device);
  if (std::getenv("UCX_TLS") == nullptr) settings.emplace_back("TLS", "^posix,sysv");
  auto network = make_context(settings, UCP_FEATURE_RMA | UCP_FEATURE_AMO64 | UCP_FEATURE_WAKEUP);
  // With nothing but shared memory, peers elsewhere are refused one by one.
  if (!network && context->shared_ == nullptr) return network.error();
  if (network) context->network_ = *network;
  return context;
}

Context::~Context() {
  if (network_ != nullptr) ucp_cleanup(network_);
  if (shared_ != nullptr) ucp_cleanup(shared_);
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

/// From shared memory, and then registered with the network's transports; without the one, from the other.
Status Memory::allocate(std::size_t total) {
  ucp_mem_map_params_t params{};
  params.field_mask = UCP_MEM_MAP_PARAM_FIELD_LENGTH | UCP_MEM_MAP_PARAM_FIELD_FLAGS;
  params.length = total;
  params.flags = UCP_MEM_MAP_ALLOCATE;
  const bool share = context_->shared() != nullptr;
  const auto first = share ? context_->shared() : context_->network();
  auto& handle = share ? shared_ : network_;
  auto status = ucp_mem_map(first, &params, &handle);
  if (status != UCS_OK) {
    handle = nullptr;
    return ucx_failure("a region of " + std::to_string(length_) + " bytes", status);
  }
  ucp_mem_attr_t attributes{};
  attributes.field_mask = UCP_MEM_ATTR_FIELD_ADDRESS;
  status = ucp_mem_query(handle, &attributes);
  if (status != UCS_OK) return ucx_failure("memory query", status);
  base_ = static_cast<std::byte*>(attributes.address);
  if (reinterpret_cast<std::uintptr_t>(base_) % 4096 != 0) {
    return Error{ENOMEM, "UCX handed out unaligned memory"};
  }
  if (share && context_->network() != nullptr) {
    params.field_mask = UCP_MEM_MAP_PARAM_FIELD_LENGTH | UCP_MEM_MAP_PARAM_FIELD_ADDRESS;
    params.address = base_;
    status = ucp_mem_map(context_->network(), &params, &network_);
    if (status != UCS_OK) {
      network_ = nullptr;
      return ucx_failure("registering a region", status);
    }
  }
  if (shared_ != nullptr) DISTFUSE_TRY(pack(context_->shared(), shared_, shared_rkey_));
  if (network_ != nullptr) DISTFUSE_TRY(pack(context_->network(), network_, network_rkey_));
  return {};
}

Memory::~Memory() {
  if (network_ != nullptr) (void)ucp_mem_unmap(context_->network(), network_);
  if (shared_ != nullptr) (void)ucp_mem_unmap(context_->shared(), shared_);
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

}  // namespace distfuse::fabric::ucx
