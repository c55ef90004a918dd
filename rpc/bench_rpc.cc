// SPDX-License-Identifier: Apache-2.0
// bench_rpc [SECONDS]: the RPC's round trips and bandwidth on this machine, one caller, a server thread that sleeps when idle; and
// ucx_perftest's active messages on the same transport, where it is installed. JSON on standard output. UCX_TLS chooses the
// transport; tcp unless set.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <sstream>

#include "rpc/test_server.h"

namespace {

using namespace distfuse::rpc;
using Clock = std::chrono::steady_clock;
using Json = nlohmann::json;

/// Answers at once from one buffer: what is measured is the RPC.
class NullHandler final : public Handler {
 public:
  bool session_allowed(SessionId) override { return true; }
  void on_metadata(const Peer&, const RequestContext&, MetadataRequest&&,
                   MetadataResponder responder) override {
    MetadataReply reply;
    reply.attributes.emplace_back();
    responder.reply(reply);
  }
  std::byte* write_buffer(const DataRequest& request) override {
    return buffer_.data() +
           (next_++ % 8) * std::size_t{kMaxBulk} % (buffer_.size() - request.length);
  }
  void on_data(const Peer&, const DataRequest& request, std::byte*,
               DataResponder responder) override {
    if (request.op == static_cast<std::uint16_t>(DataOp::read))
      responder.reply_bulk(std::span(buffer_).first(request.length), {});
    else
      responder.reply(0);
  }

 private:
  std::vector<std::byte> buffer_ = std::vector<std::byte>(9 * std::size_t{kMaxBulk});
  std::size_t next_ = 0;
};

/// Runs `once` for `seconds`; microseconds at the median and the 99th percentile, calls per second.
template <typename F>
Json measure(double seconds, F&& once) {
  std::vector<double> times;
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  for (auto now = Clock::now(); now < end;) {
    once();
    const auto then = Clock::now();
    times.push_back(std::chrono::duration<double, std::micro>(then - now).count());
    now = then;
  }
  std::sort(times.begin(), times.end());
  return {{"p50_us", times[times.size() / 2]},
          {"p99_us", times[times.size() * 99 / 100]},
          {"per_second", static_cast<double>(times.size()) / seconds}};
}

Json data(Client& client, DataOp op, std::uint32_t size, unsigned depth, double seconds) {
  std::vector<std::byte> bytes(std::size_t{size} * depth);
  std::vector<DataCall> calls(depth);
  for (unsigned i = 0; i < depth; ++i) {
    calls[i].request.op = static_cast<std::uint16_t>(op);
    calls[i].request.ino = calls[i].request.chunk = 1;
    calls[i].request.length = size;
    calls[i].request.chunk_size = kMaxBulk;
    calls[i].buffer = bytes.data() + std::size_t{i} * size;
  }
  Json result = measure(seconds, [&] {
    if (!client.run(calls).ok()) std::abort();
  });
  result["MB_per_second"] = result["per_second"].get<double>() * size * depth / 1e6;
  return result;
}

/// ucx_perftest's own client and server over lo: overall average, the last line's fifth and sixth columns.
Json perftest(const char* test, std::size_t size) {
  const char* tls = std::getenv("UCX_TLS");
  std::ostringstream command;
  command << "UCX_TLS=" << (tls != nullptr ? tls : "tcp") << " UCX_NET_DEVICES=lo sh -c '"
          << "ucx_perftest -p 13447 >/dev/null 2>&1 & sleep 0.5; ucx_perftest -p 13447 -t " << test
          << " -s " << size << " -n " << (size > 65536 ? 2000 : 50000)
          << " -f -v 127.0.0.1 2>/dev/null; wait'";
  FILE* pipe = popen(command.str().c_str(), "r");
  if (pipe == nullptr) return nullptr;
  char line[1024];
  std::string last;
  while (fgets(line, sizeof line, pipe) != nullptr)
    if (line[0] >= '0' && line[0] <= '9') last = line;
  pclose(pipe);
  std::vector<double> fields;
  std::istringstream in(last);
  for (std::string field; std::getline(in, field, ',');) fields.push_back(std::atof(field.c_str()));
  if (fields.size() < 6) return nullptr;
  return {{"average_us", fields[3]}, {"MB_per_second", fields[5] * 1.048576}};
}

}  // namespace

int main(int argc, char** argv) {
  const double seconds = argc > 1 ? std::atof(argv[1]) : 1.0;
  const Json am_latency = perftest("ucp_am_lat", 128);
  const Json am_bandwidth = perftest("ucp_am_bw", 1 << 20);
  NullHandler handler;
  auto server = Server::create(test::server_options("127.0.0.1:0"), handler);
  if (!server) {
    std::fprintf(stderr, "bench_rpc: %s\n", server.error().message.c_str());
    return 1;
  }
  bool stop = false;
  const std::string address = (*server)->address();
  std::thread thread([&] {
    while (!stop)
      if (!(*server)->progress()) (*server)->wait(std::chrono::milliseconds(-1));
  });
  Json result;
  {
    ClientOptions options;
    options.meta = address;
    options.data = {address};
    options.cluster_id = test::kCluster;
    options.session = 1;
    options.device = "lo";
    auto client = Client::create(options);
    if (!client || !(*client)->check_reachable(std::chrono::seconds(5)).ok()) {
      std::fprintf(stderr, "bench_rpc: the server is not reachable\n");
      std::_Exit(1);
    }
    Client& c = **client;
    result["metadata"] = measure(seconds, [&] {
      if (!c.call(Lookup{1, "name"}, 0, 0).ok()) std::abort();
    });
    for (const auto op : {DataOp::read, DataOp::write})
      for (const std::uint32_t size : {4096U, 1U << 20})
        for (const unsigned depth : {1U, 8U}) {
          const std::string name = std::string(op == DataOp::read ? "read_" : "write_") +
                                   (size == 4096 ? "4KiB" : "1MiB") + "_depth" +
                                   std::to_string(depth);
          result[name] = data(c, op, size, depth, seconds);
        }
  }
  result["ucx_perftest_am_latency_128B"] = am_latency;
  result["ucx_perftest_am_bandwidth_1MiB"] = am_bandwidth;
  std::printf("%s\n", result.dump(2).c_str());
  (*server)->post([&] { stop = true; });
  thread.join();
  return 0;
}
