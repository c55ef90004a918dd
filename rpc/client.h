// SPDX-License-Identifier: Apache-2.0
// The storage RPC, client side: what a mount (and lockd, and the meta target's purge) asks the
// storageds.
//
// Parties: any number of threads that call; a pool of channels (a UCX worker and its connections),
// each borrowed by one call and progressed by the calling thread itself. rpc/wire.h describes the
// protocol.
//
// Recovery: a connection that fails (the target was killed, restarted, is unreachable) is made anew
// and what was in flight is sent again with the same request id, until `give_up` has passed; the
// caller sees a pause, then one EIO. So is what a storaged answers `learning`: it has started, and waits for lockd.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/result.h"
#include "rpc/data.h"
#include "rpc/metadata.h"

namespace distfuse::rpc {

enum class Role : std::uint32_t { client = 1, lockd = 2, storaged = 3 };

struct ClientOptions {
  std::string meta;               ///< host:port of the meta target; empty: call() is not used.
  std::vector<std::string> data;  ///< host:port of each data target, in the order of their numbers.
  std::string cluster_id;         ///< 32 hex digits.
  Role role = Role::client;
  SessionId session = 0;  ///< From lockd; 0 for the roles lockd and storaged.
  std::uint64_t daemon =
      0;  ///< Which of the session's processes, one after the other, this is (rpc/wire.h).
  std::string device;      ///< UCX_NET_DEVICES; empty: any.
  unsigned channels = 64;  ///< Calls in flight at most; more wait for a free channel.
  std::chrono::milliseconds give_up{
      30000};  ///< A target that is away this long fails the call with EIO.
};

/// One data request of a batch. Target ClientOptions::data.size() is the meta target, for DataOp::sessions alone. `request.session` and `request.request_id` are filled in by run().
struct DataCall {
  std::uint32_t target = 0;  ///< Index into ClientOptions::data.
  DataRequest request{};
  std::byte* buffer =
      nullptr;  ///< write: source; read: destination (request.length bytes); statfs: a DataStatfs.
  int error = 0;      ///< Result: errno, 0: success.
  DataReply reply{};  ///< Result, if error is 0.
  std::uint64_t connection =
      0;                   ///< Result: Client::connection() of the one that brought the answer.
  std::uint64_t boot = 0;  ///< Result: of the machine that answered (ServerOptions::boot).
};

struct ClientCounters {
  std::uint64_t metadata_calls = 0, data_calls = 0, connects = 0, retries = 0, failures = 0;
};

/// A metadata request's id, given by a caller whose request may be sent again by a next process: the same then.
struct RequestName {
  std::uint64_t id = 0;
  std::uint64_t lowest_unanswered = 0;  ///< No request of the session below it is ever sent again.
};

/// Thread-safe. Destroy only when no call runs.
class Client {
 public:
  /// Reaches nobody yet. Error: EINVAL (addresses, cluster id), ENODEV (device).
  static Result<std::unique_ptr<Client>> create(const ClientOptions& options);
  virtual ~Client() = default;

  /// One metadata operation. Error: what the meta target answered (MetadataReply::error, no
  /// message), or EIO: given up; kFenced (rpc/data.h): the session is fenced; EPROTO: the target refused this
  /// client (version, cluster) or is broken.
  Result<MetadataReply> call(const MetadataRequest& request, std::uint32_t uid, std::uint32_t gid) {
    return call_named(request, uid, gid, nullptr);
  }
  /// `name`: null, or the id that the request goes under. A client is given names for all requests that change something, or for none.
  virtual Result<MetadataReply> call_named(const MetadataRequest& request, std::uint32_t uid,
                                           std::uint32_t gid, const RequestName* name) = 0;

  /// All of the batch in flight at once; returns when each has its result and no buffer is in use
  /// any more. Error: that of the first failed call.
  virtual Status run(std::span<DataCall> calls) = 0;

  /// Connects to every target and returns; for a clear message at start. Error: as call(); no retry
  /// after `timeout`.
  virtual Status check_reachable(std::chrono::milliseconds timeout) = 0;

  [[nodiscard]] virtual ClientCounters counters() const = 0;

  // For a client of one channel and one thread (lockd's), which wants to know when a target was away:
  /// Of the present connection to a data target (data.size(): the meta target); another with each connection made. 0: none.
  [[nodiscard]] virtual std::uint64_t connection(std::uint32_t target) = 0;
  /// Sleeps until a connection ends, `wake_fd` can be read, or the timeout. Negative: no timeout.
  virtual void watch(int wake_fd, std::chrono::milliseconds timeout) = 0;
};

}  // namespace distfuse::rpc
