// SPDX-License-Identifier: Apache-2.0
// Peers that break the protocol, on the stream and in active messages: each loses its connection, and an honest client beside it
// never notices.
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>

#include <cstring>
#include <random>

#include "rpc/data_check.h"
#include "rpc/handshake.h"
#include "rpc/metadata_codec.h"
#include "rpc/test_server.h"
#include "rpc/ucx.h"

namespace distfuse::rpc::test {
namespace {

using namespace std::chrono_literals;

/// An honest client that is asked after each misdeed.
class BadPeer : public ::testing::Test {
 protected:
  void SetUp() override {
    ClientOptions options;
    options.meta = server.address();
    options.data = {server.address()};
    options.cluster_id = kCluster;
    options.session = 7;
    options.device = "lo";
    honest = std::move(*Client::create(options));
    ask();
  }
  void TearDown() override {
    ask();
    EXPECT_EQ(honest->counters().retries, 0U);
    EXPECT_EQ(honest->counters().connects, 2U);
  }
  void ask() {
    ASSERT_TRUE(honest->call(Lookup{1, "x"}, 0, 0).ok());
    std::vector<std::byte> bytes(100000);
    fill(bytes, 1, 1, 0);
    DataCall call;
    call.request.op = static_cast<std::uint16_t>(DataOp::write);
    call.request.ino = call.request.chunk = 1;
    call.request.length = 100000;
    call.request.chunk_size = kMaxBulk;
    call.buffer = bytes.data();
    ASSERT_TRUE(honest->run({&call, 1}).ok());
  }
  ServerThread server;
  std::unique_ptr<Client> honest;
};

bool closed_within(int socket, std::chrono::milliseconds time) {
  const auto deadline = std::chrono::steady_clock::now() + time;
  while (std::chrono::steady_clock::now() < deadline) {
    pollfd fd{socket, POLLIN, 0};
    if (poll(&fd, 1, 100) <= 0) continue;
    char bytes[4096];
    if (recv(socket, bytes, sizeof bytes, MSG_DONTWAIT) <= 0) return true;
  }
  return false;
}

Descriptor raw_stream(const std::string& address) {
  auto stream = start_connect(address);
  EXPECT_TRUE(stream.ok());
  pollfd fd{stream->get(), POLLOUT, 0};
  EXPECT_EQ(poll(&fd, 1, 5000), 1);
  return std::move(*stream);
}

TEST_F(BadPeer, RandomBytesOnTheStream) {
  std::mt19937 random(1);
  for (int i = 0; i < 50; ++i) {
    auto stream = raw_stream(server.address());
    std::vector<std::uint8_t> bytes(16 + random() % 8192);
    for (auto& b : bytes) b = static_cast<std::uint8_t>(random());
    (void)!send(stream.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    EXPECT_TRUE(closed_within(stream.get(), 5s));
  }
}

TEST_F(BadPeer, EndlessHelloSilenceAndTruncation) {
  wire::FrameHead head{wire::kMagic, wire::kProtocolVersion, 1, 65535};
  auto endless = raw_stream(server.address());
  ASSERT_GT(send(endless.get(), &head, sizeof head, MSG_NOSIGNAL), 0);
  EXPECT_TRUE(closed_within(endless.get(), 5s));
  auto truncated = raw_stream(server.address());
  head.length = 100;
  ASSERT_GT(send(truncated.get(), &head, sizeof head, MSG_NOSIGNAL), 0);
  shutdown(truncated.get(), SHUT_WR);
  EXPECT_TRUE(closed_within(truncated.get(), 5s));
  auto silent = raw_stream(server.address());
  EXPECT_TRUE(closed_within(silent.get(), 10s));  // after the time for a hello
}

wire::Hello good_hello() {
  wire::Hello hello{};
  std::memcpy(hello.cluster_id, kCluster, sizeof hello.cluster_id);
  hello.session = 9;
  hello.token = 12345;
  hello.channel = draw_token();
  hello.attempt = 1;
  hello.role = 1;
  hello.services = wire::kMetadata | wire::kData;
  return hello;
}

std::string refusal(const std::string& address, const wire::Hello& hello, std::uint32_t version) {
  const std::vector<std::byte> worker(50);
  wire::Hello h = hello;
  h.address_length = 50;
  h.address_hash = address_hash(worker);
  auto frame = make_frame(wire::Kind::hello, std::as_bytes(std::span(&h, 1)), worker);
  std::memcpy(frame.data() + offsetof(wire::FrameHead, version), &version, sizeof version);
  auto stream = raw_stream(address);
  EXPECT_TRUE(send_frame(stream.get(), frame));
  FrameReader reader;
  for (int i = 0; i < 50; ++i) {
    pollfd fd{stream.get(), POLLIN, 0};
    poll(&fd, 1, 100);
    const auto state = reader.read(stream.get());
    if (state == FrameReader::State::broken) return "closed";
    if (state == FrameReader::State::complete) break;
  }
  const auto body = reader.body();
  if (body.size() < sizeof(wire::Refused)) return "nothing";
  return {reinterpret_cast<const char*>(body.data()) + sizeof(wire::Refused),
          body.size() - sizeof(wire::Refused)};
}

TEST_F(BadPeer, AWrongHelloIsRefusedWithTheReason) {
  EXPECT_NE(
      refusal(server.address(), good_hello(), 2).find("the server speaks protocol 4, the client 2"),
      std::string::npos);
  auto hello = good_hello();
  hello.cluster_id[3] = 'x';
  EXPECT_NE(refusal(server.address(), hello, wire::kProtocolVersion).find("another cluster"),
            std::string::npos);
  hello = good_hello();
  hello.role = 4;
  EXPECT_NE(refusal(server.address(), hello, wire::kProtocolVersion).find("role"),
            std::string::npos);
  hello = good_hello();
  hello.services = 4;
  EXPECT_NE(refusal(server.address(), hello, wire::kProtocolVersion).find("does not serve"),
            std::string::npos);
  hello = good_hello();
  hello.session = 0;
  EXPECT_NE(refusal(server.address(), hello, wire::kProtocolVersion).find("session"),
            std::string::npos);
}

TEST_F(BadPeer, AServerOfALaterVersionIsReported) {
  auto listener = std::move(*listen_on("127.0.0.1:0"));
  std::thread later([&] {
    pollfd fd{listener.get(), POLLIN, 0};
    poll(&fd, 1, 5000);
    Descriptor stream(accept(listener.get(), nullptr, nullptr));
    const wire::Refused refused{EPROTO};
    const std::string reason = "the server speaks protocol 2, the client 1: upgrade the older one";
    auto frame = make_frame(wire::Kind::refused, std::as_bytes(std::span(&refused, 1)),
                            std::as_bytes(std::span(reason.data(), reason.size())));
    const std::uint32_t version = 2;
    std::memcpy(frame.data() + offsetof(wire::FrameHead, version), &version, sizeof version);
    FrameReader reader;
    while (reader.read(stream.get()) == FrameReader::State::incomplete)
      std::this_thread::sleep_for(1ms);
    EXPECT_TRUE(send_frame(stream.get(), frame));
  });
  ClientOptions options;
  options.meta = local_address(listener.get());
  options.cluster_id = kCluster;
  options.session = 7;
  options.device = "lo";
  auto client = std::move(*Client::create(options));
  auto status = client->check_reachable(5s);
  later.join();
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code, EPROTO);
  EXPECT_NE(status.error().message.find("speaks protocol 2"), std::string::npos)
      << status.error().message;
}

/// A peer that shakes hands properly and then sends what it likes.
class RawPeer {
 public:
  explicit RawPeer(const std::string& address, const wire::Hello& hello = good_hello()) {
    context_ = *UcxContext::create("lo");
    worker_ = std::move(*UcxWorker::create(context_));
    const auto ignore = [](void*, const void*, std::size_t, void*, std::size_t,
                           const ucp_am_recv_param_t*) { return UCS_OK; };
    worker_->on_message(wire::kMetadataReply, ignore, nullptr);
    worker_->on_message(wire::kDataReply, ignore, nullptr);
    auto handshake = std::move(*Handshake::start(address, hello, worker_->address()));
    while (handshake.step() == Handshake::State::pending) std::this_thread::sleep_for(1ms);
    token = handshake.welcome().token;
    endpoint_ = *worker_->connect(
        handshake.server_address(), [](void*, ucp_ep_h, ucs_status_t) {}, nullptr);
    stream = handshake.take_stream();
  }
  ~RawPeer() {
    ucp_request_param_t param{};
    param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
    param.flags = UCP_EP_CLOSE_FLAG_FORCE;
    auto* request = ucp_ep_close_nbx(endpoint_, &param);
    if (UCS_PTR_IS_PTR(request)) {
      while (ucp_request_check_status(request) == UCS_INPROGRESS) worker_->progress();
      ucp_request_free(request);
    }
    for (int i = 0; i < 100; ++i) worker_->progress();
  }
  void send(unsigned id, std::span<const std::byte> header, std::size_t payload,
            std::uint32_t flags) {
    payload_.resize(std::max(payload_.size(), payload));
    headers_.push_back(std::make_unique<Bytes>(header.begin(), header.end()));
    ucp_request_param_t param{};
    param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_CALLBACK;
    param.flags = flags;
    param.cb.send = [](void* request, ucs_status_t, void*) { ucp_request_free(request); };
    (void)ucp_am_send_nbx(endpoint_, id, headers_.back()->data(), header.size(), payload_.data(),
                          payload, &param);
  }
  template <typename T>
  void send(unsigned id, const T& header, std::size_t payload, std::uint32_t flags = 0) {
    send(id, std::as_bytes(std::span(&header, 1)), payload, flags);
  }
  bool dropped(std::chrono::milliseconds time = 5s) {
    const auto deadline = std::chrono::steady_clock::now() + time;
    while (std::chrono::steady_clock::now() < deadline) {
      worker_->progress();
      char byte = 0;
      if (recv(stream.get(), &byte, 1, MSG_DONTWAIT) == 0) return true;
    }
    return false;
  }
  wire::DataRequestHeader data(DataOp op, std::uint32_t length) {
    wire::DataRequestHeader header{};
    header.head = {token, 1};
    header.request.session = 9;
    header.request.op = static_cast<std::uint16_t>(op);
    header.request.ino = header.request.chunk = 1;
    header.request.length = length;
    header.request.chunk_size = kMaxBulk;
    return header;
  }
  std::uint64_t token = 0;
  Descriptor stream;

 private:
  std::shared_ptr<UcxContext> context_;
  std::unique_ptr<UcxWorker> worker_;
  ucp_ep_h endpoint_ = nullptr;
  std::vector<std::byte> payload_ = std::vector<std::byte>(8 << 20);
  std::vector<std::unique_ptr<Bytes>> headers_;
};

TEST_F(BadPeer, AChannelIsItsSessionsAndGoesForward) {
  auto hello = good_hello();
  hello.attempt = 5;
  RawPeer first(server.address(), hello);
  auto other = hello;
  other.session = 10;
  other.attempt = 6;
  EXPECT_EQ(refusal(server.address(), other, wire::kProtocolVersion), "closed");
  other = hello;
  other.attempt = 4;  // given up, and only now here
  EXPECT_EQ(refusal(server.address(), other, wire::kProtocolVersion), "closed");
  other.channel = 0;
  EXPECT_EQ(refusal(server.address(), other, wire::kProtocolVersion), "closed");
  EXPECT_FALSE(first.dropped(50ms));
  hello.attempt = 6;
  RawPeer second(server.address(), hello);  // is welcome when the first is gone
  EXPECT_TRUE(first.dropped());
  EXPECT_FALSE(second.dropped(50ms));
}

TEST_F(BadPeer, MessagesThatAreNoRequests) {
  std::mt19937 random(2);
  const auto misdeed = [&](const char* what, auto&& act) {
    RawPeer peer(server.address());
    act(peer);
    EXPECT_TRUE(peer.dropped()) << what;
    ask();
  };
  misdeed("write larger than its chunk", [](RawPeer& p) {
    auto h = p.data(DataOp::write, kMaxBulk);
    h.request.offset = 1;
    p.send(wire::kDataRequest, h, kMaxBulk, UCP_AM_SEND_FLAG_RNDV);
  });
  misdeed("write of 8 MiB", [](RawPeer& p) {
    p.send(wire::kDataRequest, p.data(DataOp::write, 8U << 20), 8U << 20, UCP_AM_SEND_FLAG_RNDV);
  });
  misdeed("payload shorter than said", [](RawPeer& p) {
    p.send(wire::kDataRequest, p.data(DataOp::write, 4096), 100, UCP_AM_SEND_FLAG_EAGER);
  });
  misdeed("large payload unasked", [](RawPeer& p) {
    p.send(wire::kDataRequest, p.data(DataOp::write, 1U << 20), 1U << 20, UCP_AM_SEND_FLAG_EAGER);
  });
  misdeed("payload with a read", [](RawPeer& p) {
    p.send(wire::kDataRequest, p.data(DataOp::read, 100), 100, UCP_AM_SEND_FLAG_EAGER);
  });
  misdeed("another session's", [](RawPeer& p) {
    auto h = p.data(DataOp::read, 100);
    h.request.session = 7;
    p.send(wire::kDataRequest, h, 0, UCP_AM_SEND_FLAG_EAGER);
  });
  misdeed("a short header", [](RawPeer& p) {
    const wire::RequestHeader h{p.token, 1};
    p.send(wire::kDataRequest, h, 0, UCP_AM_SEND_FLAG_EAGER);
  });
  misdeed("garbage metadata", [](RawPeer& p) {
    const wire::RequestHeader h{p.token, 1};
    p.send(wire::kMetadataRequest, h, 4000, UCP_AM_SEND_FLAG_EAGER);
  });
  misdeed("oversized metadata", [](RawPeer& p) {
    const wire::RequestHeader h{p.token, 1};
    p.send(wire::kMetadataRequest, h, kMaxMetadataRequest + 8, UCP_AM_SEND_FLAG_RNDV);
  });
  misdeed("metadata without bytes", [](RawPeer& p) {
    const wire::RequestHeader h{p.token, 1};
    p.send(wire::kMetadataRequest, h, 0, UCP_AM_SEND_FLAG_EAGER);
  });
  misdeed("bytes on the stream",
          [](RawPeer& p) { (void)!::send(p.stream.get(), "x", 1, MSG_NOSIGNAL); });
  misdeed("more than its credits", [](RawPeer& p) {
    Bytes hold =
        *encode_request({.session = 9, .request_id = 1, .lowest_unanswered = 1, .uid = 0, .gid = 0},
                        Lookup{1, "hold"});
    for (int i = 0; i < 17; ++i)
      p.send(wire::kDataRequest, p.data(DataOp::write, 65536), 65536, UCP_AM_SEND_FLAG_RNDV);
  });
  misdeed("random headers", [&](RawPeer& p) {
    for (int i = 0; i < 10; ++i) {
      auto h = p.data(DataOp::read, 100);
      auto* bytes = reinterpret_cast<std::uint8_t*>(&h.request);
      for (std::size_t b = 0; b < sizeof h.request; ++b)
        bytes[b] = static_cast<std::uint8_t>(random());
      p.send(wire::kDataRequest, h, random() % 8192, UCP_AM_SEND_FLAG_EAGER);
    }
  });
  EXPECT_GE(server.counters().dropped, 12U);
  EXPECT_EQ(server.handler().writes_out, 0);
}

TEST_F(BadPeer, MessagesWithoutATokenChangeNothing) {
  RawPeer peer(server.address());
  auto header = peer.data(DataOp::read, 100);
  header.head.token = 1;
  for (int i = 0; i < 20; ++i) peer.send(wire::kDataRequest, header, 0, UCP_AM_SEND_FLAG_EAGER);
  peer.send(wire::kDataRequest, header, 1 << 20, UCP_AM_SEND_FLAG_RNDV);
  const std::byte one[1]{};
  peer.send(wire::kDataRequest, std::span<const std::byte>(one), 0, UCP_AM_SEND_FLAG_EAGER);
  EXPECT_FALSE(peer.dropped(300ms));
}

TEST_F(BadPeer, UnknownMessagesChangeNothing) {
  RawPeer peer(server.address());
  const auto header = peer.data(DataOp::read, 100);
  for (unsigned id : {0U, 3U, 4U, 5U, 255U, 60000U, 65535U}) {
    peer.send(id, header, 0, UCP_AM_SEND_FLAG_EAGER);
    peer.send(id, header, 1 << 20, UCP_AM_SEND_FLAG_RNDV);
  }
  EXPECT_FALSE(peer.dropped(300ms));
}

TEST_F(BadPeer, ManyThatVanishInTheMiddle) {
  for (int i = 0; i < 10; ++i) {
    RawPeer peer(server.address());
    for (int n = 0; n < 4; ++n)
      peer.send(wire::kDataRequest, peer.data(DataOp::write, 1 << 20), 1 << 20,
                UCP_AM_SEND_FLAG_RNDV);
    for (int n = 0; n < 4; ++n)
      peer.send(wire::kDataRequest, peer.data(DataOp::read, 1 << 20), 0, UCP_AM_SEND_FLAG_EAGER);
    (void)peer.dropped(std::chrono::milliseconds(i));
  }
  for (int i = 0; i < 500 && (server.handler().writes_out != 0 || server.handler().reads_out != 0);
       ++i)
    std::this_thread::sleep_for(10ms);
  EXPECT_EQ(server.handler().writes_out, 0);
  EXPECT_EQ(server.handler().reads_out, 0);
}

TEST(DataCheck, RefusesWhatLeavesItsChunk) {
  DataRequest r{};
  r.op = static_cast<std::uint16_t>(DataOp::read);
  r.ino = 1;
  r.chunk_size = 65536;
  r.length = 65536;
  EXPECT_TRUE(check_data_request(r, 0).ok());
  EXPECT_FALSE(check_data_request(r, 1).ok());
  r.offset = 1;
  EXPECT_FALSE(check_data_request(r, 0).ok());
  r.offset = 0xffffffff;  // the sum overflows 32 bits
  r.length = 2;
  EXPECT_FALSE(check_data_request(r, 0).ok());
  r.offset = 0;
  for (int op : {0, 11, 65535}) {
    r.op = static_cast<std::uint16_t>(op);
    EXPECT_FALSE(check_data_request(r, 0).ok());
  }
}

}  // namespace
}  // namespace distfuse::rpc::test
