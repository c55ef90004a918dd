// SPDX-License-Identifier: Apache-2.0
#include "rpc/ucx.h"

#include <xxhash.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "common/ucx_process.h"
#include "rpc/wire.h"

namespace distfuse::rpc {
namespace {

Error ucx_error(int code, const char* what, ucs_status_t status) {
  return Error{code, std::string(what) + ": " + ucs_status_string(status)};
}

/// Whether "rxe0:1" names a soft-RoCE device: only those have a parent, the network device.
bool is_soft_roce(const std::string& device) {
  const std::string name = device.substr(0, device.find(':'));
  std::error_code ignored;
  return !name.empty() &&
         std::filesystem::exists("/sys/class/infiniband/" + name + "/parent", ignored);
}

}  // namespace

std::uint32_t address_hash(std::span<const std::byte> address) {
  return XXH32(address.data(), address.size(), 0);
}

Result<std::shared_ptr<UcxContext>> UcxContext::create(const std::string& device) {
  settle_ucx_in_process();
  const bool soft_roce = is_soft_roce(device);
  // ud_verbs drops what arrives there with the sender's address in another place than hardware puts it; it is read from the
  // environment alone. Before any thread of UCX.
  if (soft_roce) (void)::setenv("UCX_UD_VERBS_ETH_DGID_CHECK", "n", 0);
  ucp_config_t* config = nullptr;
  ucs_status_t status = ucp_config_read(nullptr, nullptr, &config);
  if (status != UCS_OK) return ucx_error(EIO, "UCX configuration", status);
  if (!device.empty()) status = ucp_config_modify(config, "NET_DEVICES", device.c_str());
  // No shared memory: over it, UCX cannot end an endpoint whose peer was killed with its receive queue full. The operations
  // on it never complete (their memory stays in use) and the worker can never sleep again. UCX_TLS overrides this.
  if (status == UCS_OK && std::getenv("UCX_TLS") == nullptr)
    status = ucp_config_modify(config, "TLS", soft_roce ? "rc_verbs,ud_verbs" : "^sm");
  // UCX's keepalive stays on, though the stream tells of a dead peer sooner: without it endpoints have no indirect ids, and a
  // late packet would name an endpoint by a stale pointer.
  ucp_context_h handle = nullptr;
  if (status == UCS_OK) {
    ucp_params_t params{};
    params.field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_MT_WORKERS_SHARED;
    params.features = UCP_FEATURE_AM | UCP_FEATURE_WAKEUP;
    params.mt_workers_shared = 1;
    status = ucp_init(&params, config, &handle);
  }
  ucp_config_release(config);
  if (status != UCS_OK)
    return ucx_error(ENODEV, ("UCX on device '" + device + "'").c_str(), status);
  return std::shared_ptr<UcxContext>(new UcxContext(handle));
}

Result<std::unique_ptr<UcxWorker>> UcxWorker::create(std::shared_ptr<UcxContext> context) {
  ucp_worker_params_t params{};
  params.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE;
  params.thread_mode = UCS_THREAD_MODE_SERIALIZED;
  ucp_worker_h handle = nullptr;
  ucs_status_t status = ucp_worker_create(context->handle(), &params, &handle);
  if (status != UCS_OK)
    return ucx_error(status == UCS_ERR_NO_DEVICE ? ENODEV : EIO, "UCX worker", status);
  std::unique_ptr<UcxWorker> worker(new UcxWorker(std::move(context), handle));
  status = ucp_worker_get_efd(handle, &worker->event_fd_);
  if (status != UCS_OK) return ucx_error(EIO, "UCX event descriptor", status);
  ucp_address_t* address = nullptr;
  std::size_t length = 0;
  status = ucp_worker_get_address(handle, &address, &length);
  if (status != UCS_OK) return ucx_error(EIO, "UCX worker address", status);
  const auto* bytes = reinterpret_cast<const std::byte*>(address);
  worker->address_.assign(bytes, bytes + length);
  ucp_worker_release_address(handle, address);
  if (length > wire::kMaxAddress)
    return Error{E2BIG, "UCX worker address of " + std::to_string(length) +
                            " bytes: name one device in the configuration"};
  return worker;
}

void UcxWorker::on_message(unsigned id, ucp_am_recv_callback_t callback, void* argument) {
  ucp_am_handler_param_t params{};
  params.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB |
                      UCP_AM_HANDLER_PARAM_FIELD_ARG;
  params.id = id;
  params.cb = callback;
  params.arg = argument;
  if (ucp_worker_set_am_recv_handler(handle_, &params) != UCS_OK) std::abort();
}

void UcxWorker::refuse_other_messages() {
  // Each of the 65536 ids of the wire: UCX 1.13 grows its table with realloc and calls what it finds in an entry that nobody has
  // set. From the top, so that it grows once.
  for (unsigned id = 65536; id-- > 0;) {
    on_message(
        id,
        [](void*, const void*, std::size_t, void*, std::size_t, const ucp_am_recv_param_t*) {
          return UCS_OK;
        },
        nullptr);
  }
}

Result<ucp_ep_h> UcxWorker::connect(std::span<const std::byte> address,
                                    ucp_err_handler_cb_t on_error, void* argument) {
  ucp_ep_params_t params{};
  params.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                      UCP_EP_PARAM_FIELD_ERR_HANDLER;
  params.address = reinterpret_cast<const ucp_address_t*>(address.data());
  params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
  params.err_handler.cb = on_error;
  params.err_handler.arg = argument;
  ucp_ep_h endpoint = nullptr;
  const ucs_status_t status = ucp_ep_create(handle_, &params, &endpoint);
  if (status != UCS_OK) return ucx_error(EHOSTUNREACH, "UCX endpoint", status);
  return endpoint;
}

}  // namespace distfuse::rpc
