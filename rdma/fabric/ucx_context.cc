// SPDX-License-Identifier: Apache-2.0
#include "rdma/fabric/ucx_context.h"

#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <ucm/api/ucm.h>
#include <ucs/debug/debug.h>
#include <ucs/debug/log_def.h>

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
  std::size_t at = 0;
  if (std::getline(file, id)) {
    std::erase(id, '-');
    for (; at < 16 && 2 * at + 1 < id.size(); ++at) {
      host[at] = static_cast<std::byte>(std::strtoul(id.substr(2 * at, 2).c_str(), nullptr, 16));
    }
  }
  struct stat ipc {};
  if (::stat("/proc/self/ns/ipc", &ipc) == 0) {
    const auto inode = static_cast<std::uint64_t>(ipc.st_ino);
    std::memcpy(host.data() + 16, &inode, sizeof(inode));
  }
  return host;
}

Status set(ucp_config_t* config, const char* key, const std::string& value) {
  const auto status = ucp_config_modify(config, key, value.c_str());
  if (status == UCS_OK) return {};
  return ucx_failure(std::string("UCX refuses ") + key + "=" + value, status);
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
  ucp_config_t* config = nullptr;
  auto status = ucp_config_read(nullptr, nullptr, &config);
  if (status != UCS_OK) return ucx_failure("UCX configuration", status);
  const std::unique_ptr<ucp_config_t, void (*)(ucp_config_t*)> owner(config, ucp_config_release);
  // The CPU's atomics everywhere: shared memory, emulation and the loopback then agree on one word.
  DISTFUSE_TRY(set(config, "ATOMIC_MODE", "cpu"));
  if (!options.device.empty()) DISTFUSE_TRY(set(config, "NET_DEVICES", options.device));

  ucp_params_t params{};
  params.field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_MT_WORKERS_SHARED;
  params.features = UCP_FEATURE_RMA | UCP_FEATURE_AMO64 | UCP_FEATURE_WAKEUP;
  params.mt_workers_shared = 1;
  ucp_context_h handle = nullptr;
  status = ucp_init(&params, config, &handle);
  if (status != UCS_OK) {
    return ucx_failure("UCX finds no transport (device '" + options.device + "')", status);
  }
  auto context = std::make_shared<Context>(handle);
  context->host_ = read_host();
  return context;
}

Context::~Context() {
  ucp_cleanup(handle_);
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
  ucp_mem_map_params_t params{};
  params.field_mask = UCP_MEM_MAP_PARAM_FIELD_LENGTH | UCP_MEM_MAP_PARAM_FIELD_FLAGS;
  params.length = total;
  // ALLOCATE: UCX takes memory that a shared-memory transport can hand to peers.
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
  std::memset(base_, 0, total);

  void* packed = nullptr;
  std::size_t packed_length = 0;
  status = ucp_rkey_pack(context_->handle(), handle_, &packed, &packed_length);
  if (status != UCS_OK) return ucx_failure("memory key", status);
  const auto* first = static_cast<const std::byte*>(packed);
  rkey_.assign(first, first + packed_length);
  ucp_rkey_buffer_release(packed);
  if (rkey_.size() > kMaxRkey) return Error{EIO, "UCX's memory key is longer than the protocol's"};

  auto* gates = reinterpret_cast<std::uint64_t*>(base_ + gates_at);
  for (std::size_t i = kGates; i > 0; --i) free_gates_.push_back(gates + i - 1);
  return {};
}

Memory::~Memory() {
  if (handle_ != nullptr) (void)ucp_mem_unmap(context_->handle(), handle_);
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
