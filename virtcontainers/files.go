// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/virtcontainers/copytree"
	"github.com/coco-shim/coco/virtcontainers/guest"
	"github.com/coco-shim/coco/virtcontainers/process"
	"github.com/coco-shim/coco/virtcontainers/upper"
)

const (
	// filesTime bounds how long a container's files may delay its exit or its pause. filesSilence is how long the guest
	// may send nothing of them.
	filesTime    = 10 * time.Minute
	filesSilence = 30 * time.Second
	// showTime bounds how long an engine waits that reads the files of a running container.
	showTime = 2 * time.Minute
)

// ended keeps the files of a container that has ended, before its exit is published: engines look for them, and start
// the container again, when they have seen it. The exit does not fail with it.
func (c *Container) ended(ctx context.Context) {
	if err := c.keepFiles(ctx); err != nil {
		c.pod.log.Error("the files that the container wrote since its start are lost", "container", c.id, "error", err)
	}
}

// keepFiles brings the files that a container has written to its root file system to the engine's directory of them.
// The container has ended or is paused.
func (c *Container) keepFiles(ctx context.Context) error {
	if c.pod.m.Upper == nil || !c.isFirst() {
		return nil
	}
	ctx, cancel := within(ctx, filesTime)
	defer cancel()
	return c.pod.m.Upper.Do(ctx, func() error { return c.bring(ctx, contract.UpperStill) })
}

// showFiles does the same for an engine that reads the files of a running container, and waits.
func (c *Container) showFiles(ctx context.Context) error {
	show, cancel := within(ctx, showTime)
	defer cancel()
	err := c.pod.m.Upper.Do(show, func() error {
		if c.init.Current() != process.Running { // then they have been brought, or there are none
			return nil
		}
		c.untaken(c.tryTake(show))
		return c.bring(show, contract.UpperAll)
	})
	if err == nil || c.init.Current() != process.Running || ctx.Err() != nil {
		return nil //nolint:nilerr // it has ended meanwhile: keepFiles tells what it has to
	}
	c.pod.log.Error("somebody who opens the files of the running container is refused: they cannot be brought from its VM",
		"container", c.id, "error", err)
	return err
}

// watchFiles has everybody wait who opens the files of this container on the host while it runs, until they are there.
func (c *Container) watchFiles() {
	layer := c.pod.m.Upper
	if layer == nil || !c.isFirst() {
		return
	}
	w, err := layer.Watch()
	if err != nil {
		c.pod.log.Warn("engines see the files of the running container as they were at its start or last pause",
			"container", c.id, "error", err)
		return
	}
	c.watch.Store(w)
	serve := func(ctx context.Context) {
		stop := context.AfterFunc(ctx, func() { _ = w.Close() }) // ends Serve
		defer stop()
		err := w.Serve(func() error { return c.showFiles(ctx) }, func() { c.takeFiles(ctx) })
		if cerr := w.Close(); !errors.Is(cerr, os.ErrClosed) {
			err = errors.Join(err, cerr)
		}
		if err != nil {
			c.pod.log.Warn("engines are not held any more that open the files of the running container", "container", c.id,
				"error", err)
		}
	}
	if !c.pod.m.Life.Spawn(serve) {
		_ = w.Close() // the pod has ended
	}
}

// mayExec refuses an exec of a container that does not run. The exec finds what an engine has put into the container.
func (c *Container) mayExec() error {
	if err := c.runs(); err != nil {
		return err
	}
	if w := c.watch.Load(); w != nil && w.Opened() {
		c.takeFiles(c.pod.m.Life.Context())
	}
	return nil
}

// takeFiles brings to the guest what an engine has written into the directory of the running container.
func (c *Container) takeFiles(ctx context.Context) {
	ctx, cancel := within(ctx, showTime)
	defer cancel()
	c.untaken(c.pod.m.Upper.Do(ctx, func() error { return c.tryTake(ctx) }))
}

// untaken logs an error: the engine has gone on by then, so that no answer can carry it.
func (c *Container) untaken(err error) {
	if err != nil {
		c.pod.log.Error("files that an engine has put into the running container are not there before its next start",
			"container", c.id, "error", err)
	}
}

// within bounds work on a container's files.
func within(ctx context.Context, most time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, most, fmt.Errorf("not done within %s: %w", most, context.DeadlineExceeded))
}

// tryTake does it, as the layer's only work.
func (c *Container) tryTake(ctx context.Context) (err error) {
	w, err := c.pod.m.Upper.Written()
	if err != nil {
		return fmt.Errorf("look for files of the engine: %w", err)
	}
	defer func() { err = errors.Join(err, w.Dir.Close()) }()
	if len(w.Left) > 0 {
		c.pod.log.Warn("pipes and devices are not copied into the running container", "container", c.id, "names", w.Left)
	}
	to := copytree.Target{
		Sink: rootSink{c.pod.m.Agent}, Guest: contract.Rootfs(c.id), RawNames: c.pod.m.Agent.Features().RawNames,
	}
	if err := to.Send(ctx, w.Dir, w.Entries); err != nil {
		return err
	}
	c.pod.m.Upper.Took(w)
	return nil
}

// rootSink sends the pieces of files to the guest.
type rootSink struct{ to *guest.Link }

// CopyFile implements copytree.Sink.
func (s rootSink) CopyFile(ctx context.Context, req *agent.CopyFileRequest) error {
	if _, err := s.to.CopyFile(ctx, req); err != nil {
		return s.to.Fault(ctx, err)
	}
	return nil
}

// bring asks the guest for the files and merges them into the engine's directory, as the layer's only work.
func (c *Container) bring(ctx context.Context, which int) (err error) {
	layer := c.pod.m.Upper
	if layer.Knows() {
		which = contract.UpperChanges
	}
	began := time.Now()
	conn, err := c.pod.m.Agent.DialUpper(ctx, which)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := conn.Close(); !errors.Is(cerr, net.ErrClosed) {
			err = errors.Join(err, cerr)
		}
	}()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() }) // ends a read
	defer stop()
	size := c.pod.opts.Config.Runtime.UpperMiB() << 20
	report, err := layer.Bring(patient{conn}, upper.Limits{
		Entries: upper.MaxEntries, Bytes: size, Size: size, // the layer of the next start has no holes
	})
	if ctx.Err() != nil && err != nil {
		err = errors.Join(context.Cause(ctx), err)
	}
	if err != nil {
		return err
	}
	c.pod.log.Debug("files kept", "container", c.id, "entries", report.Entries, "took", time.Since(began))
	if len(report.Skipped) > 0 {
		c.pod.log.Warn("sockets and devices among the container's files are not kept", "container", c.id, "names",
			report.Skipped, "more", report.More)
	}
	return nil
}

// patient reads from a guest that may be silent for filesSilence.
type patient struct{ net.Conn }

func (p patient) Read(b []byte) (int, error) {
	if err := p.SetReadDeadline(time.Now().Add(filesSilence)); err != nil {
		return 0, err
	}
	return p.Conn.Read(b)
}
