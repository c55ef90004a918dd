// SPDX-License-Identifier: Apache-2.0
#include "rpc/test_server.h"

#include <sys/stat.h>

#include <cstdio>
#include <cstdlib>
#include <future>

#include "rpc/metadata_codec.h"

namespace distfuse::rpc::test {

std::byte pattern(std::uint64_t ino, std::uint64_t chunk, std::uint32_t position) {
  const std::uint64_t word =
      (ino * 0x9e3779b97f4a7c15 + chunk) ^ (position >> 3) * 0xff51afd7ed558ccdU;
  return static_cast<std::byte>(word >> (8 * (position & 7)));
}
void fill(std::span<std::byte> bytes, std::uint64_t ino, std::uint64_t chunk,
          std::uint32_t offset) {
  for (std::uint32_t i = 0; i < bytes.size(); ++i) bytes[i] = pattern(ino, chunk, offset + i);
}
bool matches(std::span<const std::byte> bytes, std::uint64_t ino, std::uint64_t chunk,
             std::uint32_t offset) {
  for (std::uint32_t i = 0; i < bytes.size(); ++i)
    if (bytes[i] != pattern(ino, chunk, offset + i)) return false;
  return true;
}

void EchoHandler::on_metadata(const Peer&, const RequestContext& context, MetadataRequest&& request,
                              MetadataResponder responder) {
  lowest_seen = context.lowest_unanswered;
  MetadataReply reply;
  reply.inodes_used = context.request_id;
  if (auto* lookup = std::get_if<Lookup>(&request)) {
    if (lookup->name.starts_with("hold")) {
      if (last_seen != nullptr) *last_seen = context.request_id;
      held_.push_back(std::move(responder));
      return;
    }
    if (lookup->name.starts_with("missing")) reply.error = ENOENT;
    Attributes attributes;
    attributes.ino = lookup->parent;
    reply.attributes.push_back(attributes);
    reply.strings.push_back(lookup->name);
    if (lookup->name.starts_with("large"))
      for (std::uint64_t i = 1; i <= kMaxEntriesPerReply; ++i)
        reply.entries.push_back(
            {i, i, S_IFREG, std::string(kMaxName - 4, 'n') + std::to_string(i % 1000)});
  } else if (auto* set = std::get_if<SetXattr>(&request)) {
    reply.strings.push_back(set->value);
  }
  responder.reply(reply);
}

std::byte* EchoHandler::write_buffer(const DataRequest& request) {
  if (static_cast<unsigned>(writes_out.load()) >= buffers_) return nullptr;
  ++writes_out;
  return static_cast<std::byte*>(std::malloc(request.length));
}
void EchoHandler::give_back(std::byte* buffer) {
  std::free(buffer);
  --writes_out;
  if (server != nullptr) server->resume_writes();
}
void EchoHandler::drop_write_buffer(std::byte* buffer) {
  give_back(buffer);
}

void EchoHandler::on_data(const Peer&, const DataRequest& r, std::byte* payload,
                          DataResponder responder) {
  switch (static_cast<DataOp>(r.op)) {
    case DataOp::write: {
      const bool good = matches({payload, r.length}, r.ino, r.chunk, r.offset);
      give_back(payload);
      return responder.reply(good ? 0 : EILSEQ, 0, r.length);
    }
    case DataOp::read: {
      auto* bulk = static_cast<std::byte*>(std::malloc(r.length));
      fill({bulk, r.length}, r.ino, r.chunk, r.offset);
      ++reads_out;
      struct Out {
        EchoHandler* handler;
        std::byte* bulk;
      };
      return responder.reply_bulk({bulk, r.length}, {[](void* argument) {
                                                       auto* out = static_cast<Out*>(argument);
                                                       std::free(out->bulk);
                                                       --out->handler->reads_out;
                                                       delete out;
                                                     },
                                                     new Out{this, bulk}});
    }
    case DataOp::seek:
      return responder.reply(ENXIO);
    default:
      return responder.reply(0);
  }
}

ServerOptions server_options(const std::string& listen) {
  ServerOptions options;
  options.listen = listen;
  options.cluster_id = kCluster;
  options.device = "lo";
  options.metadata = options.data = true;
  return options;
}

ServerThread::ServerThread(const std::string& listen, EchoHandler* handler,
                           const std::string& cluster)
    : own_(handler == nullptr ? std::make_unique<EchoHandler>() : nullptr),
      handler_(handler == nullptr ? own_.get() : handler) {
  std::promise<std::string> started;
  auto address = started.get_future();
  thread_ = std::thread([&, listen, cluster] {
    auto options = server_options(listen);
    options.cluster_id = cluster;
    auto server = Server::create(options, *handler_);
    if (!server) {
      std::fprintf(stderr, "%s\n", server.error().message.c_str());
      std::abort();
    }
    server_ = std::move(*server);
    handler_->server = server_.get();
    started.set_value(server_->address());
    while (!stop_) {
      if (!server_->progress()) server_->wait(std::chrono::milliseconds(-1));
    }
    handler_->drop_held();
    handler_->server = nullptr;
    server_.reset();
  });
  address_ = address.get();
}

ServerThread::~ServerThread() {
  server_->post([this] { stop_ = true; });
  thread_.join();
}

void ServerThread::run(const std::function<void(Server&)>& function) {
  std::promise<void> done;
  server_->post([&] {
    function(*server_);
    done.set_value();
  });
  done.get_future().wait();
}

ServerCounters ServerThread::counters() {
  ServerCounters counters;
  run([&](Server& server) { counters = server.counters(); });
  return counters;
}

}  // namespace distfuse::rpc::test
