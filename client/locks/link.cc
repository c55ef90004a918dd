// SPDX-License-Identifier: Apache-2.0
#include "client/locks/link.h"

#include <utility>

namespace distfuse::client {

Link::Link(LinkUser& user, std::uint32_t number, const df_table& its_geometry,
           std::unique_ptr<Control> connection, std::unique_ptr<LanePool> pool, Requests::Hook hook)
    : epoch(number),
      geometry(its_geometry),
      control(std::move(connection)),
      lanes(std::move(pool)),
      gates([this](const df_msg& freeze) { user_.answer_freeze(*this, freeze); }),
      requests(*control, std::move(hook)),
      user_(user) {}

Link::~Link() {
  close();
  control->stop();  // First: its thread calls what the others are.
}

void Link::close() {
  lanes->close();
  gates.close();
  requests.close();
}

}  // namespace distfuse::client
