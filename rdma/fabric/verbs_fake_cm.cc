// SPDX-License-Identifier: Apache-2.0
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>

#include "rdma/fabric/verbs_fake_machine.h"

namespace distfuse::fabric::verbs::fake {

void raise(FakeId* id, rdma_cm_event_type type, int status, std::vector<std::uint8_t> data,
           std::size_t padded) {
  auto* event = new FakeEvent;
  event->id = id;
  event->event = type;
  event->status = status;
  event->data = std::move(data);
  event->data.resize(padded);
  event->param.conn.private_data = padded == 0 ? nullptr : event->data.data();
  event->param.conn.private_data_len = static_cast<std::uint8_t>(padded);
  id->events()->events.push_back(event);
  ring(id->channel->fd);
}

namespace {

std::vector<std::uint8_t> data_of(const void* data, std::size_t length) {
  const auto* first = static_cast<const std::uint8_t*>(data);
  return {first, first + length};
}

int create_id(rdma_event_channel* channel, rdma_cm_id** out, void* user, rdma_port_space ps) {
  const Lock lock(machine().mu);
  auto* id = new FakeId{};
  id->channel = channel;
  id->context = user;
  id->ps = ps;
  machine().ids.insert(id);
  ++machine().live;
  *out = id;
  return 0;
}

void hang_up(FakeId* id) {
  if (id->link != Link::connected) return;
  id->link = Link::closed;
  if (id->qp != nullptr) to_error(static_cast<FakeQp*>(id->qp));
  raise(id, RDMA_CM_EVENT_DISCONNECTED);
  auto* other = id->other;
  if (other == nullptr || other->link != Link::connected) return;
  other->link = Link::closed;
  raise(other, RDMA_CM_EVENT_DISCONNECTED);
}

int destroy_id(rdma_cm_id* handle) {
  auto& m = machine();
  const Lock lock(m.mu);
  auto* id = static_cast<FakeId*>(handle);
  if (id->qp != nullptr) std::abort();  // The queue pair must go first.
  hang_up(id);
  if (id->other != nullptr) {
    const bool asking = id->link == Link::asking || id->link == Link::asked;
    if (asking) raise(id->other, RDMA_CM_EVENT_REJECTED, 28);
    id->other->other = nullptr;
  }
  auto& events = id->events()->events;
  std::erase_if(events, [id](FakeEvent* event) {
    if (event->id != id) return false;
    (void)take(id->channel->fd);
    delete event;
    return true;
  });
  m.ids.erase(id);
  --m.live;
  delete id;
  return 0;
}

std::uint16_t port_of(const sockaddr* address) {
  return ntohs(reinterpret_cast<const sockaddr_in*>(address)->sin_port);
}

int bind_addr(rdma_cm_id* handle, sockaddr* address) {
  auto& m = machine();
  const Lock lock(m.mu);
  auto* id = static_cast<FakeId*>(handle);
  id->port_number = port_of(address) != 0 ? port_of(address) : m.next_port++;
  for (const auto* other : m.ids) {
    if (other == id || other->port_number != id->port_number) continue;
    errno = EADDRINUSE;
    return -1;
  }
  return 0;
}

int resolve_addr(rdma_cm_id* handle, sockaddr*, sockaddr* to, int) {
  auto& m = machine();
  const Lock lock(m.mu);
  auto* id = static_cast<FakeId*>(handle);
  id->target = port_of(to);
  id->verbs = &m.context;
  id->port_num = 1;
  raise(id, RDMA_CM_EVENT_ADDR_RESOLVED);
  return 0;
}

int connect(rdma_cm_id* handle, rdma_conn_param* param) {
  auto& m = machine();
  const Lock lock(m.mu);
  auto* id = static_cast<FakeId*>(handle);
  const auto found = std::find_if(m.ids.begin(), m.ids.end(), [id](const FakeId* other) {
    return other->link == Link::listening && other->port_number == id->target;
  });
  if (found == m.ids.end()) {
    raise(id, RDMA_CM_EVENT_REJECTED, 8);
    return 0;
  }
  auto* child = new FakeId{};
  child->channel = (*found)->channel;
  child->context = (*found)->context;
  child->verbs = &m.context;
  child->port_num = 1;
  child->route.path_rec = &m.path;
  child->route.num_paths = 1;
  child->link = Link::asked;
  child->other = id;
  auto& name = reinterpret_cast<sockaddr_in&>(child->route.addr.dst_storage);
  name.sin_family = AF_INET;
  name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  name.sin_port = htons(m.next_port++);
  id->other = child;
  id->link = Link::asking;
  static_cast<FakeQp*>(id->qp)->reads = param->initiator_depth;
  m.ids.insert(child);
  ++m.live;
  raise(child, RDMA_CM_EVENT_CONNECT_REQUEST, 0,
        data_of(param->private_data, param->private_data_len), 56);
  return 0;
}

int accept(rdma_cm_id* handle, rdma_conn_param* param) {
  auto& m = machine();
  const Lock lock(m.mu);
  auto* id = static_cast<FakeId*>(handle);
  if (id->other == nullptr || id->qp == nullptr) {
    errno = ECONNRESET;
    return -1;
  }
  auto* mine = static_cast<FakeQp*>(id->qp);
  auto* theirs = static_cast<FakeQp*>(id->other->qp);
  mine->reads = param->initiator_depth;
  mine->other = theirs;
  theirs->other = mine;
  mine->state = theirs->state = IBV_QPS_RTS;
  id->link = id->other->link = Link::connected;
  auto data = data_of(param->private_data, param->private_data_len);
  if (m.corrupt >= 0) data.at(static_cast<std::size_t>(m.corrupt)) ^= 0x55;
  raise(id->other, RDMA_CM_EVENT_ESTABLISHED, 0, std::move(data), 196);
  raise(id, RDMA_CM_EVENT_ESTABLISHED);
  return 0;
}

int reject(rdma_cm_id* handle, const void* data, std::uint8_t length) {
  const Lock lock(machine().mu);
  auto* id = static_cast<FakeId*>(handle);
  if (id->other == nullptr) return 0;
  id->link = id->other->link = Link::closed;
  raise(id->other, RDMA_CM_EVENT_REJECTED, 28, data_of(data, length), 148);
  return 0;
}

int get_cm_event(rdma_event_channel* handle, rdma_cm_event** event) {
  const Lock lock(machine().mu);
  auto* channel = static_cast<FakeEventChannel*>(handle);
  if (channel->events.empty()) {
    errno = EAGAIN;
    return -1;
  }
  (void)take(channel->fd);
  *event = channel->events.front();
  channel->events.pop_front();
  return 0;
}

}  // namespace

void fill_cm(VerbsTable& t) {
  t.create_event_channel = []() -> rdma_event_channel* {
    const Lock lock(machine().mu);
    auto* channel = new FakeEventChannel{};
    channel->fd = eventfd(0, EFD_SEMAPHORE | EFD_NONBLOCK);
    ++machine().live;
    return channel;
  };
  t.destroy_event_channel = [](rdma_event_channel* handle) {
    const Lock lock(machine().mu);
    auto* channel = static_cast<FakeEventChannel*>(handle);
    for (auto* event : channel->events) delete event;
    close(channel->fd);
    delete channel;
    --machine().live;
  };
  t.create_id = create_id;
  t.destroy_id = destroy_id;
  t.bind_addr = bind_addr;
  t.listen = [](rdma_cm_id* id, int) {
    const Lock lock(machine().mu);
    static_cast<FakeId*>(id)->link = Link::listening;
    return 0;
  };
  t.get_src_port = [](rdma_cm_id* id) -> std::uint16_t {
    const Lock lock(machine().mu);
    return htons(static_cast<FakeId*>(id)->port_number);
  };
  t.resolve_addr = resolve_addr;
  t.resolve_route = [](rdma_cm_id* id, int) {
    const Lock lock(machine().mu);
    raise(static_cast<FakeId*>(id), RDMA_CM_EVENT_ROUTE_RESOLVED);
    return 0;
  };
  t.create_cm_qp = [](rdma_cm_id* id, ibv_pd* pd, ibv_qp_init_attr* attributes) {
    const Lock lock(machine().mu);
    id->qp = make_qp(pd, attributes);
    id->qp->state = IBV_QPS_INIT;
    return 0;
  };
  t.destroy_cm_qp = [](rdma_cm_id* id) {
    const Lock lock(machine().mu);
    drop_qp(static_cast<FakeQp*>(id->qp));
    id->qp = nullptr;
  };
  t.connect = connect;
  t.accept = accept;
  t.reject = reject;
  t.disconnect = [](rdma_cm_id* id) {
    const Lock lock(machine().mu);
    hang_up(static_cast<FakeId*>(id));
    return 0;
  };
  t.set_option = [](rdma_cm_id*, int, int, void*, std::size_t) { return 0; };
  t.get_cm_event = get_cm_event;
  t.ack_cm_event = [](rdma_cm_event* event) {
    delete static_cast<FakeEvent*>(event);
    return 0;
  };
  t.event_str = [](rdma_cm_event_type) -> const char* { return "event"; };
}

}  // namespace distfuse::fabric::verbs::fake
