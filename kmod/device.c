// SPDX-License-Identifier: GPL-2.0-only
/* /dev/distfuse: what the daemon reads and writes, and its ioctls (uapi.h). One open descriptor is at most one connection's daemon. */
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/mm.h>
#include <linux/poll.h>
#include <linux/slab.h>
#include <linux/uio.h>

#include "connection.h"
#include "session.h"
#include "uapi.h"

static struct dfs_connection *dfs_of_file(struct file *file)
{
	/* Pairs with the cmpxchg of dfs_become: the connection is whole. */
	return smp_load_acquire((struct dfs_connection **)&file->private_data);
}

static int dfs_copy_pages(struct dfs_request *request, struct iov_iter *iter, u32 bytes, bool out)
{
	u32 i;

	for (i = 0; i < request->page_count && bytes; i++) {
		u32 part = min_t(u32, bytes, PAGE_SIZE);
		size_t done = out ? copy_page_to_iter(request->pages[i], 0, part, iter)
				  : copy_page_from_iter(request->pages[i], 0, part, iter);

		if (done != part)
			return -EFAULT;
		bytes -= part;
	}
	return bytes ? -EINVAL : 0;
}

static ssize_t dfs_device_read(struct kiocb *iocb, struct iov_iter *to)
{
	struct dfs_connection *connection = dfs_of_file(iocb->ki_filp);
	struct dfs_request *request;
	ssize_t length;
	int error = 0;

	if (!connection)
		return -EPERM;
	request = dfs_connection_next(connection, iov_iter_count(to),
				      iocb->ki_filp->f_flags & O_NONBLOCK);
	if (IS_ERR(request))
		return PTR_ERR(request);
	length = request->head.len;
	if (copy_to_iter(&request->head, sizeof(request->head), to) != sizeof(request->head) ||
	    copy_to_iter(request->in, request->in_size, to) != request->in_size)
		error = -EFAULT;
	else if (request->pages_in)
		error = dfs_copy_pages(request, to, request->page_bytes, true);
	dfs_connection_copied(request, error);
	return error ? error : length;
}

/* The answer's body, into the request's buffer or pages. 0; or the daemon sent what no such request has. */
static int dfs_take_body(struct dfs_request *request, struct iov_iter *from, u32 length)
{
	bool to_pages = request->pages && !request->pages_in;
	u32 room = to_pages ? request->page_bytes : request->out_size;

	if (length > room || (length < room && !request->out_variable))
		return -EINVAL;
	request->out_length = length;
	if (to_pages)
		return dfs_copy_pages(request, from, length, false);
	return copy_from_iter(request->out, length, from) == length ? 0 : -EFAULT;
}

static ssize_t dfs_device_write(struct kiocb *iocb, struct iov_iter *from)
{
	struct dfs_connection *connection = dfs_of_file(iocb->ki_filp);
	size_t length = iov_iter_count(from);
	struct fuse_out_header head;
	struct dfs_request *request;
	int error = 0;

	if (!connection)
		return -EPERM;
	if (length < sizeof(head) || copy_from_iter(&head, sizeof(head), from) != sizeof(head))
		return -EINVAL;
	if (head.len != length || head.error > 0 || head.error <= -1000 || !head.unique ||
	    (head.error && length != sizeof(head)))
		return -EINVAL;
	request = dfs_connection_answered(connection, head.unique);
	if (!request)
		return -ENOENT;
	if (!head.error)
		error = dfs_take_body(request, from, length - sizeof(head));
	if (error)
		pr_err_ratelimited("distfuse: the client daemon's answer to request %u of inode "
				   "%llu has %zu bytes of body, which it cannot have\n",
				   request->head.opcode, request->head.nodeid,
				   length - sizeof(head));
	dfs_connection_finish(request, error ? -EIO : head.error);
	return error ? error : (ssize_t)length;
}

static __poll_t dfs_device_poll(struct file *file, poll_table *wait)
{
	struct dfs_connection *connection = dfs_of_file(file);

	if (!connection)
		return EPOLLERR;
	poll_wait(file, &connection->readers, wait);
	return EPOLLOUT | EPOLLWRNORM |
	       (dfs_connection_readable(connection) ? EPOLLIN | EPOLLRDNORM : 0);
}

/* The descriptor takes the caller's reference. */
static int dfs_become(struct file *file, struct dfs_connection *connection)
{
	int error;

	if (cmpxchg(&file->private_data, NULL, (void *)connection))
		return -EBUSY;
	error = dfs_connection_attach(connection);
	if (error)
		WRITE_ONCE(file->private_data, NULL);
	return error;
}

static long dfs_ioctl_new(struct file *file, struct dfs_ioc_new __user *argument)
{
	struct dfs_connection *connection;
	struct dfs_ioc_new new;
	int error;

	if (copy_from_user(&new, argument, sizeof(new)))
		return -EFAULT;
	if (new.abi != DFS_ABI)
		return -EPROTONOSUPPORT;
	if (dfs_of_file(file))
		return -EBUSY;
	connection = dfs_connection_new();
	if (!connection)
		return -ENOMEM;
	connection->give_up_ms = new.give_up_ms;
	error = dfs_session_open(connection, &new);
	if (!error) {
		new.connection = connection->id;
		error = dfs_become(file, connection);
		if (error)
			dfs_session_close(connection);
	}
	if (copy_to_user(argument, &new, sizeof(new)) && !error) {
		/* The descriptor's release ends it. */
		return -EFAULT;
	}
	if (error)
		dfs_connection_put(connection);
	return error;
}

static long dfs_ioctl_attach(struct file *file, struct dfs_ioc_attach __user *argument)
{
	struct dfs_connection *connection;
	struct dfs_ioc_attach attach;
	int error;

	if (copy_from_user(&attach, argument, sizeof(attach)))
		return -EFAULT;
	if (attach.abi != DFS_ABI)
		return -EPROTONOSUPPORT;
	connection = dfs_connection_of_device(attach.device_minor);
	if (!connection)
		return -ENODEV;
	attach.connection = connection->id;
	dfs_session_describe(connection, &attach.session, &attach.incarnation, &attach.lease_ms);
	attach.reserved = 0;
	error = copy_to_user(argument, &attach, sizeof(attach)) ? -EFAULT
								: dfs_become(file, connection);
	if (error)
		dfs_connection_put(connection);
	return error;
}

static long dfs_ioctl_session(struct file *file, struct dfs_ioc_session __user *argument)
{
	struct dfs_connection *connection = dfs_of_file(file);
	struct dfs_ioc_session session;
	int error;

	if (!connection)
		return -EPERM;
	if (copy_from_user(&session, argument, sizeof(session)))
		return -EFAULT;
	error = dfs_session_await(connection, &session);
	if (error)
		return error;
	return copy_to_user(argument, &session, sizeof(session)) ? -EFAULT : 0;
}

static long dfs_device_ioctl(struct file *file, unsigned int command, unsigned long argument)
{
	switch (command) {
	case DFS_IOC_NEW:
		return dfs_ioctl_new(file, (void __user *)argument);
	case DFS_IOC_ATTACH:
		return dfs_ioctl_attach(file, (void __user *)argument);
	case DFS_IOC_SESSION:
		return dfs_ioctl_session(file, (void __user *)argument);
	default:
		return -ENOTTY;
	}
}

static int dfs_device_open(struct inode *inode, struct file *file)
{
	file->private_data = NULL; /* miscdevice put itself there */
	return nonseekable_open(inode, file);
}

static int dfs_device_release(struct inode *inode, struct file *file)
{
	struct dfs_connection *connection = dfs_of_file(file);

	if (connection) {
		dfs_connection_detach(connection);
		if (!READ_ONCE(connection->mounted))
			dfs_session_close(connection);
		dfs_connection_put(connection);
	}
	return 0;
}

static const struct file_operations dfs_device_operations = {
	.owner = THIS_MODULE,
	.open = dfs_device_open,
	.release = dfs_device_release,
	.read_iter = dfs_device_read,
	.write_iter = dfs_device_write,
	.poll = dfs_device_poll,
	.unlocked_ioctl = dfs_device_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.llseek = no_llseek,
};

static struct miscdevice dfs_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = DFS_DEVICE_NAME,
	.fops = &dfs_device_operations,
	.mode = 0600,
};

int dfs_device_init(void)
{
	return misc_register(&dfs_device);
}

void dfs_device_exit(void)
{
	misc_deregister(&dfs_device);
}
