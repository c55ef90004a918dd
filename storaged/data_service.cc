// SPDX-License-Identifier: Apache-2.0
#include "storaged/data_service.h"

#include <poll.h>
#include <spdlog/spdlog.h>

#include <cstring>

namespace distfuse::storaged {

using rpc::DataOp;

DataService::~DataService() {
  if (store_) stop();
}

void DataService::start(rpc::Server& server, std::unique_ptr<ChunkStore> store,
                        std::unique_ptr<FencedSessions> fenced) {
  server_ = &server;
  store_ = std::move(store);
  fenced_ = std::move(fenced);
  living_ = LivingSessions(fenced_->incarnation());
  worker_ = std::make_unique<WorkerThread>();
}

bool DataService::progress() {
  bool any = store_->progress();
  if (buffers_freed_) {
    buffers_freed_ = false;
    any = true;
    share_out_buffers();
  }
  while (!waiting_for_store_.empty() && store_->in_flight() < store_->max_operations()) {
    any = true;
    Task& task = *waiting_for_store_.front();
    waiting_for_store_.pop_front();
    submit(task);
  }
  return any;
}

bool DataService::idle() const {
  return store_->in_flight() == 0 && persisting_ == 0 && pool_.taken() == 0 &&
         waiting_for_buffer_.empty() && waiting_for_store_.empty();
}

void DataService::stop() {
  worker_.reset();
  while (persisting_ > 0) server_->progress();  // what the worker has posted
  for (Task* task : waiting_for_buffer_) forget(*task);
  for (Task* task : waiting_for_store_) forget(*task);
  waiting_for_buffer_.clear();
  waiting_for_store_.clear();
  bool synced = false;
  ChunkOperation everything;
  everything.op = DataOp::sync;
  const auto run_until_empty = [this] {
    while (store_->in_flight() > 0) {
      if (store_->progress()) continue;
      pollfd fd{store_->event_fd(), POLLIN, 0};
      (void)::poll(&fd, 1, 1000);
    }
  };
  run_until_empty();
  store_->submit(everything, [&synced](const ChunkOutcome& outcome) {
    synced = true;
    if (outcome.error != 0)
      spdlog::error("the last sync of the data store failed: {}", std::strerror(outcome.error));
  });
  run_until_empty();
  if (!synced) std::abort();
  store_.reset();
  fences_.clear();
}

DataServiceStatus DataService::status() const {
  return {store_->statistics(),
          server_->counters(),
          requests_,
          waiting_for_buffer_.size() + waiting_for_store_.size(),
          pool_.taken(),
          fenced_->size(),
          living_.learning(),
          living_.incarnation()};
}

// ---- buffers

std::byte* DataService::write_buffer(const rpc::DataRequest& request) {
  Buffer* buffer = pool_.take(request.length);
  if (buffer == nullptr) {
    writes_wait_ = true;
    return nullptr;
  }
  return buffer->data;
}

void DataService::drop_write_buffer(std::byte* buffer) {
  release(pool_.find(buffer));
}

void DataService::release(Buffer& buffer) {
  pool_.release(buffer);
  buffers_freed_ = writes_wait_ || !waiting_for_buffer_.empty();
}

void DataService::share_out_buffers() {
  for (int turn = 0; turn < 2; ++turn) {
    writes_next_ = !writes_next_;
    if (writes_next_) {
      if (!std::exchange(writes_wait_, false)) continue;
      server_->resume_writes();  // sets writes_wait_ again when the pool runs out
    } else {
      while (!waiting_for_buffer_.empty()) {
        Task& task = *waiting_for_buffer_.front();
        task.buffer = pool_.take(task.request.length);
        if (task.buffer == nullptr) break;
        waiting_for_buffer_.pop_front();
        to_store(task);
      }
    }
  }
  writes_next_ = !writes_next_;  // the other first, next time
}

// ---- requests

void DataService::on_data(const rpc::Peer& peer, const rpc::DataRequest& request,
                          std::byte* payload, rpc::DataResponder responder) {
  ++requests_;
  if (fenced_->contains(peer.session)) {
    if (payload != nullptr) release(pool_.find(payload));
    return responder.reply(rpc::kFenced);
  }
  if (static_cast<DataOp>(request.op) == DataOp::fence)
    return fence(request.ino, std::move(responder));
  Task& task = allocate();
  task.session = peer.session;
  task.request = request;
  task.buffer = payload != nullptr ? &pool_.find(payload) : nullptr;
  task.responder = std::move(responder);
  ++running_[peer.session];
  const auto op = static_cast<DataOp>(request.op);
  if (op == DataOp::statfs) task.request.length = sizeof(rpc::DataStatfs);
  if ((op == DataOp::read && request.length != 0) || op == DataOp::statfs) return give_buffer(task);
  to_store(task);
}

void DataService::give_buffer(Task& task) {
  if (waiting_for_buffer_.empty()) task.buffer = pool_.take(task.request.length);
  if (task.buffer != nullptr) return to_store(task);
  waiting_for_buffer_.push_back(&task);
}

void DataService::to_store(Task& task) {
  if (waiting_for_store_.empty() && store_->in_flight() < store_->max_operations())
    return submit(task);
  waiting_for_store_.push_back(&task);
}

void DataService::submit(Task& task) {
  const rpc::DataRequest& request = task.request;
  ChunkOperation operation;
  operation.op = static_cast<DataOp>(request.op);
  operation.ino = request.ino;
  operation.chunk = request.chunk;
  operation.offset = request.offset;
  operation.length = request.length;
  operation.chunk_size = request.chunk_size;
  operation.flags = request.flags;
  operation.buffer = task.buffer != nullptr ? task.buffer->data : nullptr;
  store_->submit(operation,
                 [this, &task](const ChunkOutcome& outcome) { completed(task, outcome); });
}

void DataService::completed(Task& task, const ChunkOutcome& outcome) {
  const auto op = static_cast<DataOp>(task.request.op);
  const bool bulk =
      outcome.error == 0 && outcome.length != 0 && (op == DataOp::read || op == DataOp::statfs);
  if (bulk) {
    Buffer* buffer = std::exchange(task.buffer, nullptr);
    const rpc::Release when_sent{
        [](void* argument) {
          auto* service = static_cast<DataService*>(static_cast<Buffer*>(argument)->owner);
          service->release(*static_cast<Buffer*>(argument));
        },
        buffer};
    buffer->owner = this;
    task.responder.reply_bulk({buffer->data, outcome.length}, when_sent);
  } else {
    task.responder.reply(outcome.error, outcome.offset, outcome.length);
  }
  forget(task);
}

DataService::Task& DataService::allocate() {
  if (free_.empty()) {
    tasks_.push_back(std::make_unique<Task>());
    free_.push_back(tasks_.back().get());
  }
  Task& task = *free_.back();
  free_.pop_back();
  return task;
}

/// The request is over: gives back what it holds.
void DataService::forget(Task& task) {
  if (task.buffer != nullptr) release(*std::exchange(task.buffer, nullptr));
  task.responder = {};
  const rpc::SessionId session = task.session;
  free_.push_back(&task);
  auto running = running_.find(session);
  if (--running->second > 0) return;
  running_.erase(running);
  for (std::size_t i = 0; i < fences_.size();) {
    if (fences_[i].session != session) {
      ++i;
      continue;
    }
    Fence fence = std::move(fences_[i]);
    fences_.erase(fences_.begin() + static_cast<std::ptrdiff_t>(i));
    persist(std::move(fence));
  }
}

// ---- fencing

void DataService::fence(rpc::SessionId session, rpc::DataResponder responder) {
  if (session == 0) return responder.reply(EINVAL);  // lockd's own and the meta target's
  if (!fenced_->contains(session)) spdlog::info("session {:x} is fenced", session);
  fenced_->add(session);
  server_->disconnect_session(session);
  Fence fence{session, std::move(responder)};
  if (running_.contains(session)) {
    fences_.push_back(std::move(fence));
  } else {
    persist(std::move(fence));
  }
}

void DataService::persist(Fence fence) {
  if (!worker_) return;  // stopping: unanswered
  ++persisting_;
  auto shared = std::make_shared<Fence>(std::move(fence));
  worker_->run([this, shared] {
    const Status status = fenced_->persist(shared->session);
    if (!status.ok())
      spdlog::error("fence of session {:x}: {}", shared->session, status.error().message);
    server_->post([this, shared, code = status.ok() ? 0 : status.error().code] {
      --persisting_;
      shared->responder.reply(code);
    });
  });
}

void DataService::on_sessions(rpc::Sessions&& sessions, rpc::DataResponder responder) {
  const bool first = living_.learning();
  if (!living_.learn(sessions)) {
    spdlog::error("data: {}", living_.refusal(sessions.incarnation));
    return responder.reply(ESTALE);
  }
  if (first)
    spdlog::info("{}: lockd of incarnation {} told {} living sessions", "data",
                 sessions.incarnation, sessions.ids.size());
  server_->disconnect_sessions([this](rpc::SessionId session) { return session_allowed(session); });
  responder.reply(0);
  if (fenced_->size() < FencedSessions::kWorthwhile || !worker_) return;
  auto below = fenced_->cover(sessions.high, sessions.ids);
  if (!below) return;
  ++persisting_;
  worker_->run([this, below = std::make_shared<FencedBelow>(std::move(*below))] {
    const Status status = fenced_->compact(*below);
    if (!status.ok())
      spdlog::error("the list of fenced sessions grows: {}", status.error().message);
    server_->post([this] { --persisting_; });
  });
}

}  // namespace distfuse::storaged
