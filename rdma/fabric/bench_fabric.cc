// SPDX-License-Identifier: Apache-2.0
// bench_fabric [KIND [SECONDS]]: the latencies of a chain (fetch-and-add, READ of a slot, WRITE of a hint: what taking a free lock
// posts) and of a message's round trip, between two processes of this machine, as JSON on standard output. UCX_TLS
// chooses the transports, as for every UCX program.
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "common/log.h"
#include "rdma/fabric/fabric.h"

namespace {

using namespace distfuse;
using Clock = std::chrono::steady_clock;

[[noreturn]] void die(const Error& error) {
  std::fprintf(stderr, "bench_fabric: %s\n", error.message.c_str());
  std::exit(1);
}

template <typename T>
T must(Result<T> result) {
  if (!result) die(result.error());
  return std::move(*result);
}

class Server : public fabric::Handler {
 public:
  void on_connect_request(std::unique_ptr<fabric::ConnectRequest> request) override {
    connection_ = must(worker->accept(std::move(request), {}, region));
  }
  void on_connected(fabric::Connection&, std::span<const std::byte>) override {}
  void on_message(fabric::Connection& connection, std::span<const std::byte> message) override {
    if (auto status = connection.send(message); !status) die(status.error());
  }
  void on_completion(fabric::Connection&, std::uint64_t, const Status&) override {}
  void on_disconnect(fabric::Connection&, const Error&) override { std::_Exit(0); }

  fabric::Worker* worker = nullptr;
  fabric::Region* region = nullptr;

 private:
  std::unique_ptr<fabric::Connection> connection_;
};

class Client : public fabric::Handler {
 public:
  void on_connected(fabric::Connection&, std::span<const std::byte>) override { ++events; }
  void on_message(fabric::Connection&, std::span<const std::byte>) override { ++events; }
  void on_completion(fabric::Connection&, std::uint64_t, const Status& status) override {
    if (!status) die(status.error());
    ++events;
  }
  void on_disconnect(fabric::Connection&, const Error& reason) override { die(reason); }
  std::uint64_t events = 0;
};

[[noreturn]] void serve(const fabric::Options& options, int port_pipe) {
  Server server;
  auto fabric = must(fabric::open(options));
  auto worker = must(fabric->create_worker(server));
  auto region = must(fabric->create_region(1 << 20));
  server.worker = worker.get();
  server.region = region.get();
  const auto address = must(worker->listen("127.0.0.1:0"));
  if (write(port_pipe, address.data(), address.size()) < 0) std::_Exit(1);
  close(port_pipe);
  while (true) {
    if (!worker->progress()) worker->wait(std::chrono::milliseconds(-1));
  }
}

struct Figures {
  std::size_t count = 0;
  double p50_ns = 0;
  double p99_ns = 0;
};

template <typename Step>
Figures measure(double seconds, Step step) {
  std::vector<std::int64_t> times;
  times.reserve(1 << 20);
  const auto until = Clock::now() + std::chrono::duration<double>(seconds);
  auto start = Clock::now();
  while (start < until && times.size() < (1 << 22)) {
    step();
    const auto end = Clock::now();
    times.push_back((end - start).count());
    start = end;
  }
  std::sort(times.begin(), times.end());
  return {times.size(), static_cast<double>(times[times.size() / 2]),
          static_cast<double>(times[times.size() * 99 / 100])};
}

void print(const char* name, const Figures& figures, const char* end) {
  std::printf("  \"%s\": {\"count\": %zu, \"p50_ns\": %.0f, \"p99_ns\": %.0f}%s\n", name,
              figures.count, figures.p50_ns, figures.p99_ns, end);
}

double server_cpu_seconds() {
  rusage usage{};
  getrusage(RUSAGE_CHILDREN, &usage);
  return static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
         static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

void run(const fabric::Options& options, const std::string& address, double seconds, pid_t child) {
  Client client;
  auto fabric = must(fabric::open(options));
  auto worker = must(fabric->create_worker(client));
  auto connection = must(worker->connect(address, {}, std::chrono::seconds(5)));
  const auto await = [&](bool sleep) {
    const auto before = client.events;
    while (client.events == before) {
      if (!worker->progress() && sleep) worker->wait(std::chrono::seconds(1));
    }
  };
  await(true);
  auto local = must(worker->allocate(4096));
  const auto post = [&](std::span<const fabric::Operation> chain) {
    if (auto status = connection->post(chain, 1); !status) die(status.error());
    await(false);
  };
  using fabric::Op;
  const fabric::Operation add{Op::fetch_add, 0, local.data(), 0, 1, 0};
  const fabric::Operation read{Op::read, 0, local.data() + 64, 128, 0, 0};
  const fabric::Operation write{Op::write, 72, local.data() + 256, 1, 0, 0};
  const fabric::Operation chain[] = {add, read, write};
  const auto one = measure(seconds, [&] { post({&add, 1}); });
  const auto three = measure(seconds, [&] { post(chain); });
  const auto send = [&](bool sleep) {
    if (auto status = connection->send(local.first(64)); !status) die(status.error());
    await(sleep);
  };
  const auto polled = measure(seconds, [&] { send(false); });
  const auto slept = measure(seconds, [&] { send(true); });
  connection.reset();
  waitpid(child, nullptr, 0);
  std::printf("{\n  \"fabric\": \"%s\",\n", fabric->describe().c_str());
  print("fetch_add", one, ",");
  print("chain_add_read_write", three, ",");
  print("message_round_trip_client_polls", polled, ",");
  print("message_round_trip_client_sleeps", slept, ",");
  std::printf("  \"target_cpu_seconds\": %.3f\n}\n", server_cpu_seconds());
}

}  // namespace

int main(int argc, char** argv) {
  (void)log::init({"bench_fabric", "warn", ""});
  fabric::Options options;
  options.kind = argc > 1 ? argv[1] : "ucx";
  if (options.kind == "ucx") options.device = "lo";
  const double seconds = argc > 2 ? std::atof(argv[2]) : 1.0;
  int pipes[2];
  if (pipe(pipes) != 0) return 1;
  const pid_t child = fork();
  if (child == 0) serve(options, pipes[1]);
  close(pipes[1]);
  char address[128];
  const ssize_t n = read(pipes[0], address, sizeof(address));
  if (n <= 0) return 1;
  run(options, std::string(address, static_cast<std::size_t>(n)), seconds, child);
  return 0;
}
