// SPDX-License-Identifier: Apache-2.0
// A server for the tests: answers from what the request says, so that any process can check any answer.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <set>
#include <thread>
#include <vector>

#include "rpc/server.h"

namespace distfuse::rpc::test {

inline constexpr char kCluster[] = "0123456789abcdef0123456789abcdef";

/// The byte that belongs at `position` of chunk `chunk` of `ino`.
std::byte pattern(std::uint64_t ino, std::uint64_t chunk, std::uint32_t position);
void fill(std::span<std::byte> bytes, std::uint64_t ino, std::uint64_t chunk, std::uint32_t offset);
bool matches(std::span<const std::byte> bytes, std::uint64_t ino, std::uint64_t chunk,
             std::uint32_t offset);

/// Lookup: attributes.ino is the parent, strings[0] the name, inodes_used the request id. Names that start with "hold" are never
/// answered, with "large" by a listing. write: EILSEQ unless the pattern; read: the pattern.
class EchoHandler : public Handler {
 public:
  /// `buffers`: write buffers at most, so that writes have to wait for memory.
  explicit EchoHandler(unsigned buffers = 4) : buffers_(buffers) {}
  bool session_allowed(SessionId session) override { return fenced_.load() != session; }
  void on_metadata(const Peer& peer, const RequestContext& context, MetadataRequest&& request,
                   MetadataResponder responder) override;
  std::byte* write_buffer(const DataRequest& request) override;
  void drop_write_buffer(std::byte* buffer) override;
  void on_data(const Peer& peer, const DataRequest& request, std::byte* payload,
               DataResponder responder) override;

  void drop_held() { held_.clear(); }
  Server* server = nullptr;                         ///< For resume_writes().
  std::atomic<std::uint64_t>* last_seen = nullptr;  ///< Request id of the last "hold".
  std::atomic<std::uint64_t> fenced_{0};
  std::atomic<int> writes_out{0};  ///< Buffers handed out and not yet back.
  std::atomic<int> reads_out{0};   ///< Bulk replies not yet released.
  std::atomic<std::uint64_t> lowest_seen{0};

 private:
  void give_back(std::byte* buffer);
  unsigned buffers_;
  std::vector<MetadataResponder> held_;
};

/// Server and handler on a thread of their own.
class ServerThread {
 public:
  explicit ServerThread(const std::string& listen = "127.0.0.1:0", EchoHandler* handler = nullptr,
                        const std::string& cluster = kCluster);
  ~ServerThread();
  [[nodiscard]] const std::string& address() const { return address_; }
  EchoHandler& handler() { return *handler_; }
  ServerCounters counters();
  /// Runs on the server's thread and returns when done.
  void run(const std::function<void(Server&)>& function);

 private:
  std::unique_ptr<EchoHandler> own_;
  EchoHandler* handler_;
  std::unique_ptr<Server> server_;
  std::string address_;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

ServerOptions server_options(const std::string& listen);

}  // namespace distfuse::rpc::test
