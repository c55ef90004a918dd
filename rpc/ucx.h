// SPDX-License-Identifier: Apache-2.0
// UCX handles with owners. Used by server.cc and channel.cc only.
#pragma once

#include <ucp/api/ucp.h>

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/result.h"

namespace distfuse::rpc {

class UcxContext {
 public:
  /// `device`: UCX_NET_DEVICES; empty: any. Error: ENODEV.
  static Result<std::shared_ptr<UcxContext>> create(const std::string& device);
  ~UcxContext() { ucp_cleanup(handle_); }
  UcxContext(const UcxContext&) = delete;
  UcxContext& operator=(const UcxContext&) = delete;
  [[nodiscard]] ucp_context_h handle() const { return handle_; }

 private:
  explicit UcxContext(ucp_context_h handle) : handle_(handle) {}
  ucp_context_h handle_;
};

/// Used by one thread at a time.
class UcxWorker {
 public:
  static Result<std::unique_ptr<UcxWorker>> create(std::shared_ptr<UcxContext> context);
  ~UcxWorker() { ucp_worker_destroy(handle_); }
  UcxWorker(const UcxWorker&) = delete;
  UcxWorker& operator=(const UcxWorker&) = delete;

  [[nodiscard]] ucp_worker_h handle() const { return handle_; }
  [[nodiscard]] int event_fd() const { return event_fd_; }
  [[nodiscard]] std::span<const std::byte> address() const { return address_; }
  bool progress() { return ucp_worker_progress(handle_) != 0; }
  /// True: event_fd() becomes readable with the next event. False: there are events now.
  bool arm() { return ucp_worker_arm(handle_) == UCS_OK; }
  void on_message(unsigned id, ucp_am_recv_callback_t callback, void* argument);
  /// UCX 1.13 looks up a message's id without a bound when it comes by rendezvous: this makes every id one that it knows. Before
  /// on_message.
  void refuse_other_messages();
  /// `on_error` is called from progress, at most once, when UCX finds the peer unreachable.
  Result<ucp_ep_h> connect(std::span<const std::byte> address, ucp_err_handler_cb_t on_error,
                           void* argument);

 private:
  UcxWorker(std::shared_ptr<UcxContext> context, ucp_worker_h handle)
      : context_(std::move(context)), handle_(handle) {}
  std::shared_ptr<UcxContext> context_;
  ucp_worker_h handle_;
  int event_fd_ = -1;
  std::vector<std::byte> address_;
};

[[nodiscard]] std::uint32_t address_hash(std::span<const std::byte> address);

}  // namespace distfuse::rpc
