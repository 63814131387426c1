// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/coco-shim/coco/virtcontainers/upper"
)

const (
	// filesTime bounds how long a container's files may delay its exit or its pause. filesSilence is how long the guest
	// may send nothing of them.
	filesTime    = 10 * time.Minute
	filesSilence = 30 * time.Second
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
func (c *Container) keepFiles(ctx context.Context) (err error) {
	layer := c.pod.m.Upper
	if layer == nil || !c.isFirst() {
		return nil
	}
	began := time.Now()
	ctx, cancel := context.WithTimeoutCause(ctx, filesTime, fmt.Errorf("not done within %s: %w", filesTime,
		context.DeadlineExceeded))
	defer cancel()
	conn, err := c.pod.m.Agent.DialUpper(ctx)
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
	most := c.pod.opts.Config.Runtime.UpperMiB() << 20
	report, err := layer.Bring(patient{conn}, upper.Limits{
		Entries: upper.MaxEntries, Bytes: most, Size: most, // the layer of the next start has no holes
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
