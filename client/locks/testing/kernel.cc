// SPDX-License-Identifier: Apache-2.0
#include "client/locks/testing/kernel.h"

#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

namespace distfuse::client::testing {

namespace {

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "COHERENCE BROKEN: %s\n", what.c_str());
  std::abort();
}

void raise_to(std::atomic<std::uint64_t>& cell, std::uint64_t value) {
  auto now = cell.load();
  while (now < value && !cell.compare_exchange_weak(now, value)) {
  }
}

/// For the time that storage takes.
void breathe() {
  std::this_thread::yield();
}

}  // namespace

void PinCheck::enter(Ino ino, unsigned mount, Mode mode) {
  const std::lock_guard lock(mutex_);
  auto& holders = holders_[ino - 1];
  for (const auto& [other, count] : holders.exclusive) {
    if (other != mount && count > 0)
      fail(fmt::format("inode {}: mounts {} and {}, one in X", ino, other, mount));
  }
  if (mode == Mode::x) {
    for (const auto& [other, count] : holders.shared) {
      if (other != mount && count > 0)
        fail(fmt::format("inode {}: mount {} in S, {} in X", ino, other, mount));
    }
  }
  ++(mode == Mode::x ? holders.exclusive : holders.shared)[mount];
}

void PinCheck::leave(Ino ino, unsigned mount, Mode mode) {
  const std::lock_guard lock(mutex_);
  auto& holders = holders_[ino - 1];
  --(mode == Mode::x ? holders.exclusive : holders.shared)[mount];
}

/// A pin that is known to PinCheck for as long as it lives.
class Mount::Checked {
 public:
  Checked(Mount& mount, Ino ino, Pin pin) : mount_(mount), ino_(ino), pin_(std::move(pin)) {
    mount_.truth_.check.enter(ino_, mount_.id_, pin_.mode());
  }
  Checked(const Checked&) = delete;
  Checked& operator=(const Checked&) = delete;
  ~Checked() { mount_.truth_.check.leave(ino_, mount_.id_, pin_.mode()); }

 private:
  Mount& mount_;
  Ino ino_;
  Pin pin_;  // Destroyed after ~Checked: the check ends first.
};

// --- pages ------------------------------------------------------------------------------------

void Mount::lock_page(Inode& inode, std::size_t page) {
  std::unique_lock lock(inode.mutex);
  inode.unlocked.wait(lock, [&] { return !inode.pages[page].locked; });
  inode.pages[page].locked = true;
}

void Mount::unlock_page(Inode& inode, std::size_t page) {
  const std::lock_guard lock(inode.mutex);
  inode.pages[page].locked = false;
  inode.unlocked.notify_all();
}

Result<Pin> Mount::pin_page(Ino ino, Mode mode, std::size_t page, std::size_t count,
                            const Interrupted& interrupted) {
  return table_->pin_page_io(ino, mode, {page * kPageSize, count * kPageSize}, interrupted);
}

bool Mount::read(Ino ino, std::size_t page, const Interrupted& interrupted) {
  Inode& node = inode(ino);
  auto& cell = truth_.pages[ino - 1][page];
  const auto least = cell.done.load();
  std::uint64_t value = 0;
  bool hit = false;
  {
    const std::lock_guard lock(node.mutex);
    hit = node.pages[page].uptodate;
    value = node.pages[page].value;
  }
  if (!hit) {
    lock_page(node, page);
    {
      const std::lock_guard lock(node.mutex);
      hit = node.pages[page].uptodate;  // Somebody else has read it.
      value = node.pages[page].value;
    }
    if (!hit) {
      auto pin = pin_page(ino, Mode::s, page, 1, interrupted);
      if (!pin) {
        unlock_page(node, page);
        return false;
      }
      const Checked checked(*this, ino, std::move(*pin));
      breathe();
      value = cell.stored;
    }
    {
      const std::lock_guard lock(node.mutex);
      node.pages[page].uptodate = true;
      node.pages[page].value = value;
    }
    unlock_page(node, page);
  }
  if (value < least) {
    fail(fmt::format("mount {} inode {} page {}: read {} ({}), {} was written before", id_, ino,
                     page, value, hit ? "cached" : "from storage", least));
  }
  if (value > cell.written) fail("a value that nobody wrote");
  return true;
}

bool Mount::write(Ino ino, std::size_t first, std::size_t count, const Interrupted& interrupted) {
  Inode& node = inode(ino);
  const std::lock_guard rwsem(node.rwsem);
  for (std::size_t page = first; page < first + count; ++page) lock_page(node, page);
  auto pin = pin_page(ino, Mode::x, first, count, interrupted);
  const bool written = pin.ok();
  std::vector<std::uint64_t> values;
  if (written) {
    const Checked checked(*this, ino, std::move(*pin));
    for (std::size_t page = first; page < first + count; ++page) {
      auto& cell = truth_.pages[ino - 1][page];
      values.push_back(++cell.written);
      breathe();
      raise_to(cell.stored, values.back());
    }
  }
  for (std::size_t page = first; page < first + count; ++page) {
    if (written) {
      const std::lock_guard lock(node.mutex);
      node.pages[page].uptodate = true;
      node.pages[page].dirty = false;
      node.pages[page].value = values[page - first];
    }
    unlock_page(node, page);
    if (written) raise_to(truth_.pages[ino - 1][page].done, values[page - first]);
  }
  return written;
}

void Mount::store(Ino ino, std::size_t page) {
  Inode& node = inode(ino);
  if (node.write_opens == 0) return;
  auto& cell = truth_.pages[ino - 1][page];
  std::uint64_t value = 0;
  {
    const std::lock_guard lock(node.mutex);
    Page& there = node.pages[page];
    // A fault waits for the page's lock; this one turns back.
    if (node.write_opens == 0 || there.locked || !there.uptodate) return;
    value = ++cell.written;
    there.value = value;
    there.dirty = true;
  }
  raise_to(cell.done, value);
}

/// With the page locked. Not under a pin: the WRITE that comes of it asks for one, on a thread of the daemon.
void Mount::write_back(Ino ino, std::size_t page) {
  Inode& node = inode(ino);
  std::uint64_t value = 0;
  {
    const std::lock_guard lock(node.mutex);
    if (!node.pages[page].dirty) return;
    value = node.pages[page].value;
    node.pages[page].dirty = false;
  }
  auto pin = pin_page(ino, Mode::x, page, 1, {});
  if (!pin) return;
  const Checked checked(*this, ino, std::move(*pin));
  raise_to(truth_.pages[ino - 1][page].stored, value);
}

void Mount::invalidate_page(Ino ino, std::size_t page) {
  Inode& node = inode(ino);
  lock_page(node, page);
  write_back(ino, page);
  {
    const std::lock_guard lock(node.mutex);
    node.pages[page].uptodate = false;
  }
  unlock_page(node, page);
}

void Mount::open_for_writing(Ino ino) {
  ++inode(ino).write_opens;
  table_->drop(ino, Mode::s);
}

void Mount::close_for_writing(Ino ino) {
  Inode& node = inode(ino);
  for (std::size_t page = 0; page < kPages; ++page) {
    lock_page(node, page);
    write_back(ino, page);
    unlock_page(node, page);
  }
  // A store may have come in between: the last unmap writes it back, and nobody stores any more.
  {
    const std::lock_guard lock(node.mutex);
    if (node.write_opens > 1) {
      --node.write_opens;
      return;
    }
    bool dirty = false;
    for (const auto& page : node.pages) dirty |= page.dirty;
    if (!dirty) {
      --node.write_opens;
      return;
    }
  }
  close_for_writing(ino);
}

// --- attributes -------------------------------------------------------------------------------

void Mount::drop_attributes(Ino ino) {
  Inode& node = inode(ino);
  const std::lock_guard lock(node.mutex);
  node.attributes = false;
  ++node.attributes_version;
}

/// Under a pin.
std::uint64_t Mount::daemon_size(Ino ino) {
  Inode& node = inode(ino);
  const std::lock_guard lock(node.daemon_mutex);
  if (!node.size_known) {
    node.size = truth_.sizes[ino - 1].stored;
    node.size_known = true;
  }
  return node.size;
}

bool Mount::stat(Ino ino, const Interrupted& interrupted) {
  Inode& node = inode(ino);
  const auto least = truth_.sizes[ino - 1].done.load();
  std::uint64_t size = 0;
  std::uint64_t version = 0;
  bool hit = false;
  {
    const std::lock_guard lock(node.mutex);
    hit = node.attributes;
    size = node.attributes_size;
    version = node.attributes_version;
  }
  if (!hit) {
    {
      auto pin = table_->pin(ino, Mode::s, interrupted);
      if (!pin) return false;
      const Checked checked(*this, ino, std::move(*pin));
      size = daemon_size(ino);
    }
    breathe();
    const std::lock_guard lock(node.mutex);
    if (node.attributes_version == version) {
      node.attributes = true;
      node.attributes_size = size;
    }
  }
  if (size < least) {
    fail(fmt::format("mount {} inode {}: size {} ({}), was {} before", id_, ino, size,
                     hit ? "cached" : "asked", least));
  }
  return true;
}

void Mount::stat_by_glimpse(Ino ino) {
  const auto& cell = truth_.sizes[ino - 1];
  const auto least = cell.done.load();
  {
    auto pin = table_->try_pin(ino, Mode::s);
    if (pin) {
      const Checked checked(*this, ino, std::move(pin));
      if (daemon_size(ino) < least) fail("a size under a tried pin is old");
      return;
    }
  }
  const auto block = table_->glimpse(ino);
  if (!block) return;
  const auto size = block->has_value() ? (*block)->size : cell.stored.load();
  if (size < least) {
    fail(fmt::format("mount {} inode {}: glimpsed size {} ({}), was {} before", id_, ino, size,
                     block->has_value() ? "published" : "at storage", least));
  }
}

bool Mount::grow(Ino ino, const Interrupted& interrupted) {
  Inode& node = inode(ino);
  auto& cell = truth_.sizes[ino - 1];
  const std::lock_guard rwsem(node.rwsem);
  std::uint64_t size = 0;
  {
    auto pin = table_->pin(ino, Mode::x, interrupted);
    if (!pin) return false;
    const Checked checked(*this, ino, std::move(*pin));
    if (daemon_size(ino) != cell.written) fail("a writer does not know the size");
    const std::lock_guard lock(node.daemon_mutex);
    size = ++cell.written;
    node.size = size;
    node.size_dirty = true;
  }
  drop_attributes(ino);
  raise_to(cell.done, size);
  return true;
}

bool Mount::rename(Ino first, Ino second, const Interrupted& interrupted) {
  const std::array<Wanted, 3> wanted{Wanted{first, Mode::x}, {second, Mode::x}, {first, Mode::s}};
  auto pins = table_->pin_all(wanted, interrupted);
  if (!pins) return false;
  const Checked one(*this, first, std::move((*pins)[0]));
  if (first == second) return true;
  const Checked two(*this, second, std::move((*pins)[1]));
  breathe();
  return true;
}

void Mount::readdirplus() {
  std::array<Ino, kInodes> inodes{};
  for (std::size_t i = 0; i < kInodes; ++i) inodes[i] = i + 1;
  std::array<std::uint64_t, kInodes> least{};
  for (std::size_t i = 0; i < kInodes; ++i) least[i] = truth_.sizes[i].done;
  auto pins = table_->try_pin_many(inodes, Mode::s);
  for (std::size_t i = 0; i < kInodes; ++i) {
    if (!pins[i]) continue;
    const Checked checked(*this, inodes[i], std::move(pins[i]));
    if (daemon_size(inodes[i]) < least[i]) fail("readdirplus saw an old size");
  }
}

// --- the owner --------------------------------------------------------------------------------

void Mount::invalidate_kernel(Ino ino, std::span<const Range> ranges) {
  drop_attributes(ino);
  if (ranges.empty()) {
    for (std::size_t page = 0; page < kPages; ++page) invalidate_page(ino, page);
  }
  for (const auto& range : ranges) {
    for (std::size_t page = 0; page < kPages; ++page) {
      const auto offset = page * kPageSize;
      if (offset + kPageSize <= range.offset || offset >= range.offset + range.length) continue;
      invalidate_page(ino, page);
    }
  }
}

void Mount::invalidate_attributes(Ino ino) {
  drop_attributes(ino);
}

void Mount::shed(Ino ino, Mode keep) {
  Inode& node = inode(ino);
  breathe();
  {
    const std::lock_guard lock(node.mutex);
    for (std::size_t page = 0; page < kPages; ++page) {
      const Page& there = node.pages[page];
      // A page that a request has locked may wait for the lock, but never is it one that readers trust.
      if (there.uptodate && (keep == Mode::none || there.dirty)) {
        fail(fmt::format("mount {} inode {} page {} is trusted after the gate closed", id_, ino,
                         page));
      }
    }
    if (keep == Mode::none && node.attributes) fail("attributes are trusted after the gate closed");
  }
  const std::lock_guard lock(node.daemon_mutex);
  if (node.size_dirty) raise_to(truth_.sizes[ino - 1].stored, node.size);
  node.size_dirty = false;
  if (keep == Mode::none) node.size_known = false;
}

std::optional<ValueBlock> Mount::publish(Ino ino) {
  Inode& node = inode(ino);
  const std::lock_guard lock(node.daemon_mutex);
  if (!node.size_dirty) return {};
  return ValueBlock{node.size, 0, 0};
}

void Mount::session_lost(const std::string& /*reason*/) {
  lost = true;
}

Mode Mount::keep_allowed(Ino ino, Mode asked) {
  return inode(ino).write_opens > 0 ? Mode::none : asked;
}

std::string Mount::describe() {
  std::string text;
  for (std::size_t i = 0; i < kInodes; ++i) {
    text += fmt::format("  mount {} inode {}: write_opens {} pages", id_, i + 1,
                        inodes_[i].write_opens.load());
    const std::lock_guard lock(inodes_[i].mutex);
    for (const auto& page : inodes_[i].pages) {
      text += fmt::format(" [{}{}{} {}]", page.locked ? 'L' : '-', page.uptodate ? 'U' : '-',
                          page.dirty ? 'D' : '-', page.value);
    }
    text += '\n';
  }
  return text;
}

}  // namespace distfuse::client::testing
