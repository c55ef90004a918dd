// SPDX-License-Identifier: Apache-2.0
#include "client/storage/file_data.h"

#include <algorithm>

namespace distfuse::client {
namespace {

/// Requests of one batch: a range of chunks without bulk is walked in steps of this many.
constexpr std::size_t kBatch = 64;

rpc::DataCall call_for(const FileRef& file, rpc::DataOp op, const Piece& piece) {
  rpc::DataCall call;
  call.target = piece.target;
  call.request.ino = file.ino;
  call.request.chunk = piece.chunk;
  call.request.offset = piece.offset;
  call.request.length = piece.length;
  call.request.chunk_size = file.chunk_size;
  call.request.op = static_cast<std::uint16_t>(op);
  return call;
}

/// Memory that a thread uses again for each request: a read or write allocates nothing.
struct Scratch {
  std::vector<Piece> pieces;
  std::vector<rpc::DataCall> calls;
};

Scratch& scratch() {
  thread_local Scratch memory;
  memory.calls.clear();
  return memory;
}

}  // namespace

Status FileData::read(const FileRef& file, std::uint64_t offset, std::span<std::byte> buffer) {
  Scratch& memory = scratch();
  split(layout(file), offset, buffer.size(), memory.pieces);
  for (const Piece& piece : memory.pieces) {
    memory.calls.push_back(call_for(file, rpc::DataOp::read, piece));
    memory.calls.back().buffer = buffer.data() + piece.position;
  }
  return client_.run(memory.calls);
}

Status FileData::write(const FileRef& file, std::uint64_t offset, std::span<const std::byte> buffer,
                       bool durable) {
  Scratch& memory = scratch();
  split(layout(file), offset, buffer.size(), memory.pieces);
  for (const Piece& piece : memory.pieces) {
    memory.calls.push_back(call_for(file, rpc::DataOp::write, piece));
    rpc::DataCall& call = memory.calls.back();
    // The RPC only reads the source of a write; one struct serves both directions.
    call.buffer = const_cast<std::byte*>(buffer.data()) + piece.position;  // NOLINT
    if (durable) call.request.flags = rpc::kWriteSync;
  }
  return durable ? client_.run(memory.calls) : change(file, memory.calls);
}

Status FileData::change(const FileRef& file, std::span<rpc::DataCall> calls) {
  Status done = client_.run(calls);
  if (file.unsynced != nullptr) {
    for (const rpc::DataCall& call : calls)
      if (call.error == 0) file.unsynced->changed(call.target, call.boot);
  }
  return done;
}

Status FileData::truncate(const FileRef& file, std::uint64_t size) {
  std::vector<rpc::DataCall> calls;
  for (const Piece& piece : cut(layout(file), size)) {
    calls.push_back(call_for(file, rpc::DataOp::truncate, piece));
  }
  return change(file, calls);
}

Status FileData::over_range(const FileRef& file, rpc::DataOp op, std::uint64_t offset,
                            std::uint64_t length) {
  Scratch& memory = scratch();
  const std::uint64_t step = kBatch * file.chunk_size;
  for (std::uint64_t done = 0; done < length; done += step) {
    split(layout(file), offset + done, std::min(step, length - done), memory.pieces);
    memory.calls.clear();
    for (const Piece& piece : memory.pieces) memory.calls.push_back(call_for(file, op, piece));
    DISTFUSE_TRY(change(file, memory.calls));
  }
  return {};
}

Status FileData::punch(const FileRef& file, std::uint64_t offset, std::uint64_t length) {
  return over_range(file, rpc::DataOp::punch, offset, length);
}

Status FileData::allocate(const FileRef& file, std::uint64_t offset, std::uint64_t length) {
  return over_range(file, rpc::DataOp::allocate, offset, length);
}

Result<std::uint64_t> FileData::seek(const FileRef& file, std::uint64_t offset, std::uint64_t size,
                                     bool hole) {
  if (offset >= size) return Error{ENXIO, {}};
  Scratch& memory = scratch();
  const std::uint64_t step = kBatch * file.chunk_size;
  for (std::uint64_t at = offset; at < size; at += step) {
    split(layout(file), at, std::min(step, size - at), memory.pieces);
    memory.calls.clear();
    for (const Piece& piece : memory.pieces) {
      memory.calls.push_back(call_for(file, rpc::DataOp::seek, piece));
      memory.calls.back().request.flags = hole ? rpc::kSeekHole : rpc::kSeekData;
    }
    const Status all = client_.run(memory.calls);
    for (const rpc::DataCall& call : memory.calls) {
      if (call.error == ENXIO) continue;
      if (call.error != 0) return all.ok() ? Error{call.error, {}} : all.error();
      const std::uint64_t found = call.request.chunk * file.chunk_size + call.reply.offset;
      if (found < size) return found;
    }
  }
  if (hole) return size;
  return Error{ENXIO, {}};
}

Status FileData::sync(const FileRef& file, std::uint64_t size) {
  std::vector<rpc::DataCall> calls;
  for (const std::uint32_t target : targets_of(layout(file), size)) {
    calls.push_back(call_for(file, rpc::DataOp::sync, {target, 0, 0, 0, 0}));
  }
  if (calls.empty()) return {};
  const std::uint64_t mark = Unsynced::mark();
  Status done = client_.run(calls);
  if (file.unsynced != nullptr) {
    for (const rpc::DataCall& call : calls)
      if (call.error == 0) file.unsynced->synced(call.target, call.boot, mark);
  }
  return done;
}

Result<rpc::DataStatfs> FileData::statfs() {
  std::vector<rpc::DataStatfs> answers(targets_);
  std::vector<rpc::DataCall> calls;
  for (std::uint32_t target = 0; target < targets_; ++target) {
    calls.push_back(call_for({}, rpc::DataOp::statfs, {target, 0, 0, 0, 0}));
    calls.back().request.length = sizeof(rpc::DataStatfs);
    calls.back().buffer = reinterpret_cast<std::byte*>(&answers[target]);
  }
  DISTFUSE_TRY(client_.run(calls));
  rpc::DataStatfs sum{};
  sum.block_size = std::max<std::uint64_t>(answers[0].block_size, 512);
  for (const rpc::DataStatfs& answer : answers) {
    const auto scaled = [&](std::uint64_t blocks) {
      return blocks * answer.block_size / sum.block_size;
    };
    sum.blocks += scaled(answer.blocks);
    sum.blocks_free += scaled(answer.blocks_free);
    sum.blocks_available += scaled(answer.blocks_available);
    sum.files += answer.files;
    sum.files_free += answer.files_free;
  }
  return sum;
}

}  // namespace distfuse::client
