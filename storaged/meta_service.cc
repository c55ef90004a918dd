// SPDX-License-Identifier: Apache-2.0
#include "storaged/meta_service.h"

#include <spdlog/spdlog.h>

#include "storaged/fenced_sessions.h"

namespace distfuse::storaged {

void MetaService::start(rpc::Server& server, std::unique_ptr<MetadataStore> store,
                        std::function<void()> purge_wanted) {
  server_ = &server;
  store_ = std::move(store);
  living_ = LivingSessions(store_->incarnation());
  purge_wanted_ = std::move(purge_wanted);
  worker_ = std::make_unique<WorkerThread>();
}

void MetaService::stop() {
  worker_.reset();                       // its sync is over
  while (syncing_) server_->progress();  // and what it has posted is run
  const Status status = store_->sync();
  if (!status.ok())
    spdlog::error("the last sync of the metadata failed: {}", status.error().message);
  Waiting waiting =
      std::exchange(waiting_, {});  // all that came while the thread made its last one
  answer(waiting, status.ok() ? 0 : status.error().code);
}

void MetaService::on_metadata(const rpc::Peer& peer, const rpc::RequestContext& context,
                              rpc::MetadataRequest&& request, rpc::MetadataResponder responder) {
  (void)peer;
  if (std::holds_alternative<rpc::SyncMetadata>(request))
    return after_sync(std::move(responder), {});
  rpc::MetadataReply reply = store_->execute(context, request);
  const auto* fence = std::get_if<rpc::FenceSession>(&request);
  if (fence != nullptr && reply.error == 0) {
    if (fenced_.insert(fence->session).second)
      spdlog::info("session {:x} is fenced", fence->session);
    server_->disconnect_session(fence->session);
    after_sync(std::move(responder), std::move(reply));
  } else {
    responder.reply(reply);
  }
  const MetadataCounters counters = store_->counters();
  if (counters.purges_pending + counters.orphans > 0) purge_wanted_();
}

void MetaService::after_sync(rpc::MetadataResponder responder, rpc::MetadataReply reply) {
  waiting_.emplace_back(std::move(responder), std::move(reply));
  if (!syncing_) start_sync();
}

void MetaService::start_sync() {
  if (!worker_) return;  // stopping: the last sync answers
  syncing_ = true;
  auto waiting = std::make_shared<Waiting>(std::exchange(waiting_, {}));
  worker_->run([this, waiting] {
    const Status status = store_->sync();
    server_->post([this, waiting, code = status.ok() ? 0 : status.error().code] {
      syncing_ = false;
      answer(*waiting, code);
      if (!waiting_.empty()) start_sync();
    });
  });
}

void MetaService::answer(Waiting& waiting, int error) {
  for (auto& [responder, reply] : waiting) {
    if (error != 0) reply.error = error;
    responder.reply(reply);
  }
  waiting.clear();
}

void MetaService::on_sessions(rpc::Sessions&& sessions, rpc::DataResponder responder) {
  const bool first = living_.learning();
  // Noted before it is believed. A power cut may forget it, with all else that was not synced.
  if (!living_.over(sessions))
    if (const auto noted = store_->note_incarnation(sessions.incarnation); !noted.ok())
      return responder.reply(noted.error().code);
  if (!living_.learn(sessions)) {
    spdlog::error("meta: {}", living_.refusal(sessions.incarnation));
    return responder.reply(ESTALE);
  }
  if (first)
    spdlog::info("{}: lockd of incarnation {} told {} living sessions", "meta",
                 sessions.incarnation, sessions.ids.size());
  server_->disconnect_sessions([this](rpc::SessionId session) { return session_allowed(session); });
  responder.reply(0);
  if (store_->counters().fenced_sessions < FencedSessions::kWorthwhile) return;
  // An error is the store's end, or of its space, and logged there: the fences stay as they are.
  if (store_->cover_fences(sessions.high, sessions.ids).ok())
    std::erase_if(fenced_, [this](rpc::SessionId session) { return !living_.lives(session); });
}

}  // namespace distfuse::storaged
