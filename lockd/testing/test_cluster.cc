// SPDX-License-Identifier: Apache-2.0
#include "lockd/testing/test_cluster.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <sstream>
#include <stdexcept>
#include <thread>

#include "common/admin.h"
#include "rpc/server.h"

namespace distfuse::lockd::testing {

namespace {

using namespace std::chrono_literals;

/// Says yes to every fence and to each incarnation of lockd that is not over, and nothing else. For two threads.
class FenceOnly : public rpc::Handler {
 public:
  explicit FenceOnly(Talk& talk) : talk_(talk) {}
  bool session_allowed(rpc::SessionId /*session*/) override { return true; }
  void on_metadata(const rpc::Peer& /*peer*/, const rpc::RequestContext& /*context*/,
                   rpc::MetadataRequest&& request, rpc::MetadataResponder responder) override {
    rpc::MetadataReply reply;
    if (!std::holds_alternative<rpc::FenceSession>(request)) reply.error = ENOSYS;
    responder.reply(reply);
  }
  void on_sessions(rpc::Sessions&& sessions, rpc::DataResponder responder) override {
    const std::lock_guard lock(mutex_);
    responder.reply(sessions.incarnation < incarnation_ ? ESTALE : 0);
    if (sessions.incarnation <= incarnation_) return;
    incarnation_ = sessions.incarnation;
    talk_.say(fmt::format("lockd {}", incarnation_));
  }
  void on_data(const rpc::Peer& /*peer*/, const rpc::DataRequest& request, std::byte* /*payload*/,
               rpc::DataResponder responder) override {
    responder.reply(request.op == static_cast<std::uint16_t>(rpc::DataOp::fence) ? 0 : ENOSYS);
  }

 private:
  Talk& talk_;
  std::mutex mutex_;
  std::uint64_t incarnation_ = 0;  ///< Protected by mutex_.
};

int serve_storage(const config::Cluster& cluster, Talk& talk) {
  FenceOnly handler(talk);
  const auto serve = [&](const std::string& listen, bool meta) {
    rpc::ServerOptions options;
    options.listen = listen;
    options.cluster_id = cluster.id;
    options.device = "lo";
    options.metadata = meta;
    options.data = !meta;
    auto server = rpc::Server::create(options, handler);
    if (!server.ok()) {
      talk.say("failed: " + server.error().message);
      ::_exit(1);
    }
    return std::move(server).value();
  };
  const auto run = [](rpc::Server& server) {
    for (;;) {
      while (server.progress()) {
      }
      server.wait(-1ms);
    }
  };
  const auto meta = serve(cluster.storaged[0].meta_listen, true);
  const auto data = serve(cluster.storaged[0].data_listen, false);
  std::thread other([&] { run(*meta); });
  talk.say("ready");
  run(*data);
  other.join();
  return 0;
}

}  // namespace

int free_port() {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  if (::bind(fd, reinterpret_cast<sockaddr*>(&address), length) != 0 ||
      ::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) != 0)
    throw std::runtime_error("no free port");
  ::close(fd);
  return ntohs(address.sin_port);
}

TestCluster::TestCluster(const std::string& program, std::uint64_t slots, bool with_storage)
    : program_(program) {
  root_ = (std::filesystem::temp_directory_path() / "distfuse-lockd-XXXXXX").string();
  if (::mkdtemp(root_.data()) == nullptr) throw std::runtime_error("mkdtemp");
  const auto listen = [] { return fmt::format("127.0.0.1:{}", free_port()); };
  cluster_.id = "00112233445566778899aabbccddeeff";
  cluster_.name = "test";
  cluster_.fabric = {"ucx", "lo", {}};
  cluster_.lockd = {listen(), slots, root_ + "/lockd"};
  config::Storaged storaged;
  storaged.name = "storage-0";
  storaged.meta = storaged.data = true;
  storaged.meta_listen = listen();
  storaged.data_listen = listen();
  storaged.meta_dir = root_ + "/meta";
  storaged.data_dir = root_ + "/data";
  cluster_.storaged.push_back(storaged);
  config_path_ = root_ + "/cluster.toml";
  std::ofstream(config_path_) << config::to_toml(cluster_);
  admin_ = root_ + "/admin";
  if (with_storage) start_storage();
  start_lockd();
}

TestCluster::~TestCluster() {
  lockd_.reset();
  storage_.reset();
  std::error_code ignored;
  std::filesystem::remove_all(root_, ignored);
}

void TestCluster::start_lockd() {
  lockd_.reset();
  lockd_ = Process::start({program_, "--config", config_path_, "--admin-socket", admin_,
                           "--log-file", root_ + "/lockd.log"});
  const auto ready = lockd_->talk().hear(10s);
  if (ready != "ready lockd=" + cluster_.lockd.listen)
    throw std::runtime_error("lockd said: " + ready);
}

void TestCluster::start_storage() {
  storage_ = Process::fork_child([this](Talk& talk) { return serve_storage(cluster_, talk); });
  if (const auto said = storage_->talk().hear(10s); said != "ready")
    throw std::runtime_error("storage said: " + said);
}

void TestCluster::stop_storage() {
  storage_.reset();
}

nlohmann::json TestCluster::status() const {
  const auto text = admin_query(admin_, "status");
  if (!text.ok()) throw std::runtime_error("status: " + text.error().message);
  return nlohmann::json::parse(*text);
}

bool TestCluster::eventually(const std::function<bool(const nlohmann::json&)>& good,
                             std::chrono::milliseconds timeout) const {
  const auto until = std::chrono::steady_clock::now() + timeout;
  while (!good(status())) {
    if (std::chrono::steady_clock::now() > until) return false;
    std::this_thread::sleep_for(5ms);
  }
  return true;
}

std::string TestCluster::log() const {
  std::stringstream text;
  text << std::ifstream(root_ + "/lockd.log").rdbuf();
  return text.str();
}

std::string TestCluster::storage_says() {
  return storage_->talk().hear(10s);
}

RawClientOptions TestCluster::options(const std::string& name) const {
  RawClientOptions options;
  options.lockd = cluster_.lockd.listen;
  options.cluster_id = cluster_.id;
  options.name = name;
  return options;
}

}  // namespace distfuse::lockd::testing
