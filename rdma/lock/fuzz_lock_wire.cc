/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Any bytes through the three decoders; what passes must be what it says it is. */
#include <cstdlib>
#include <cstring>

#include "rdma/lock/wire.h"

extern "C" int LLVMFuzzerTestOneInput(const df_u8 *data, size_t size)
{
	auto length = static_cast<df_u32>(size);
	df_msg message;
	df_hello hello;
	df_welcome welcome;
	static const df_u8 no_token[DF_TOKEN_BYTES] = {};

	if (df_msg_read(data, length, &message) == DF_CHECK_OK) {
		if (df_msg_size(message.head.type) != size || std::memcmp(&message, data, size) ||
		    df_msg_check(data, length) ||
		    !(df_msg_from_client(message.head.type) ||
		      df_msg_from_lockd(message.head.type)))
			std::abort();
	}
	if (df_hello_check(data, length, &hello) == DF_CHECK_OK &&
	    (hello.magic != DF_WIRE_MAGIC || (!hello.session && hello.name[15])))
		std::abort();
	if (df_welcome_check(data, length, &welcome) == DF_CHECK_OK && !welcome.refusal &&
	    (welcome.slots < DF_BUCKET_SLOTS || df_token_equal(welcome.token, no_token)))
		std::abort();
	return 0;
}
