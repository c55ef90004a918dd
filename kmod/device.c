// SPDX-License-Identifier: GPL-2.0-only
/* /dev/distfuse: what the daemon reads and writes, and its ioctls (uapi.h). One open descriptor is one daemon's at most. */
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/mm.h>
#include <linux/poll.h>
#include <linux/slab.h>
#include <linux/uio.h>

#include "connection.h"
#include "race.h"
#include "session.h"
#include "uapi.h"

static struct dfs_daemon *dfs_of_file(struct file *file)
{
	/* Pairs with the cmpxchg of dfs_become: the daemon is whole. */
	return smp_load_acquire((struct dfs_daemon **)&file->private_data);
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
	struct dfs_daemon *daemon = dfs_of_file(iocb->ki_filp);
	struct dfs_request_head head = {};
	struct dfs_request *request;
	ssize_t length;
	int error = 0;

	if (!daemon)
		return -EPERM;
	if (iov_iter_count(to) < sizeof(head))
		return -EINVAL;
	request = dfs_connection_next(daemon, iov_iter_count(to) - sizeof(head),
				      iocb->ki_filp->f_flags & O_NONBLOCK);
	if (IS_ERR(request))
		return PTR_ERR(request);
	length = sizeof(head) + request->head.len;
	head.session = request->session;
	head.lowest = request->lowest;
	head.flags = request->again ? DFS_RESENT : 0;
	if (copy_to_iter(&head, sizeof(head), to) != sizeof(head) ||
	    copy_to_iter(&request->head, sizeof(request->head), to) != sizeof(request->head) ||
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
	struct dfs_daemon *daemon = dfs_of_file(iocb->ki_filp);
	size_t length = iov_iter_count(from);
	struct fuse_out_header head;
	struct dfs_request *request;
	int error = 0;

	if (!daemon)
		return -EPERM;
	if (length < sizeof(head) || copy_from_iter(&head, sizeof(head), from) != sizeof(head))
		return -EINVAL;
	if (head.len != length || head.error > 0 || head.error <= -1000 || !head.unique ||
	    (head.error && length != sizeof(head)))
		return -EINVAL;
	if (dfs_fails(DFS_RACE_answer_lost, daemon->connection))
		return length;
	request = dfs_connection_answered(daemon, head.unique);
	if (!request)
		return -ENOENT;
	if (head.error == -EKEYREVOKED) {
		request->fenced = true;
		dfs_session_fenced(daemon->connection, request->session);
		head.error = -EIO;
	}
	if (head.error == -DFS_LOST) {
		request->lost = true;
		head.error = -EIO;
	}
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
	struct dfs_daemon *daemon = dfs_of_file(file);

	if (!daemon)
		return EPOLLERR;
	poll_wait(file, &daemon->connection->readers, wait);
	return EPOLLOUT | EPOLLWRNORM |
	       (dfs_connection_readable(daemon) ? EPOLLIN | EPOLLRDNORM : 0);
}

/* The descriptor takes the caller's reference. */
static int dfs_become(struct file *file, struct dfs_connection *connection, u32 drain_ms,
		      u32 *number)
{
	struct dfs_daemon *daemon = kzalloc(sizeof(*daemon), GFP_KERNEL);
	int error;

	if (!daemon)
		return -ENOMEM;
	daemon->connection = connection;
	error = dfs_connection_attach(daemon, drain_ms);
	if (!error) {
		*number = daemon->number;
		if (!cmpxchg(&file->private_data, NULL, (void *)daemon))
			return 0;
		/* Two ioctls on one descriptor: the other was first. */
		dfs_connection_detach(daemon);
		error = -EBUSY;
	}
	kfree(daemon);
	return error;
}

static long dfs_ioctl_new(struct file *file, struct dfs_ioc_new __user *argument)
{
	struct dfs_connection *connection;
	struct dfs_ioc_new new;
	u32 number;
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
		error = dfs_become(file, connection, 0, &number);
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

/* What `look` tells, and an attach beside. */
static void dfs_describe(struct dfs_connection *connection, struct dfs_ioc_attach *attach)
{
	attach->connection = connection->id;
	attach->session = attach->incarnation = attach->lease_ms = 0;
	(void)dfs_session_describe(connection, &attach->session, &attach->incarnation,
				   &attach->lease_ms);
	spin_lock(&connection->spin);
	attach->daemon = connection->daemon;
	attach->aborted = connection->aborted;
	attach->give_up_ms = connection->give_up_ms;
	spin_unlock(&connection->spin);
}

static long dfs_ioctl_attach(struct file *file, struct dfs_ioc_attach __user *argument)
{
	struct dfs_connection *connection;
	struct dfs_ioc_attach attach;
	int error = 0;

	if (copy_from_user(&attach, argument, sizeof(attach)))
		return -EFAULT;
	if (attach.abi != DFS_ABI)
		return -EPROTONOSUPPORT;
	if (dfs_of_file(file))
		return -EBUSY;
	connection = dfs_connection_of_device(attach.device_minor);
	if (!connection)
		return -ENODEV;
	if (!attach.look && !dfs_session_of_cluster(connection, attach.cluster))
		error = -EXDEV;
	else if (!attach.look)
		error = dfs_become(file, connection, attach.drain_ms, &attach.daemon);
	if (!error) {
		u32 number = attach.daemon;

		/* After the attach: what session there is now is the one that is followed from here. */
		dfs_describe(connection, &attach);
		if (!attach.look)
			attach.daemon = number;
		if (copy_to_user(argument, &attach, sizeof(attach)))
			error = -EFAULT; /* if it is the daemon, the descriptor's release ends it */
	}
	if (attach.look || (error && !dfs_of_file(file)))
		dfs_connection_put(connection);
	return error;
}

static long dfs_ioctl_session(struct file *file, struct dfs_ioc_session __user *argument)
{
	struct dfs_daemon *daemon = dfs_of_file(file);
	struct dfs_ioc_session session;
	int error;

	if (!daemon)
		return -EPERM;
	if (copy_from_user(&session, argument, sizeof(session)))
		return -EFAULT;
	error = dfs_session_await(daemon, &session);
	if (error)
		return error;
	return copy_to_user(argument, &session, sizeof(session)) ? -EFAULT : 0;
}

static long dfs_ioctl_fenced(struct file *file, const u64 __user *argument)
{
	struct dfs_daemon *daemon = dfs_of_file(file);
	u64 session;

	if (!daemon)
		return -EPERM;
	if (copy_from_user(&session, argument, sizeof(session)))
		return -EFAULT;
	dfs_session_fenced(daemon->connection, session);
	return 0;
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
	case DFS_IOC_FENCED:
		return dfs_ioctl_fenced(file, (void __user *)argument);
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
	struct dfs_daemon *daemon = dfs_of_file(file);
	struct dfs_connection *connection;

	if (!daemon)
		return 0;
	connection = daemon->connection;
	dfs_connection_detach(daemon);
	kfree(daemon);
	if (!READ_ONCE(connection->mounted))
		dfs_session_close(connection);
	dfs_connection_put(connection);
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
