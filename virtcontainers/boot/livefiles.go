// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/plan/volume"
	"github.com/coco-shim/coco/virtcontainers/cgroups"
	"github.com/coco-shim/coco/virtcontainers/share"
	"github.com/coco-shim/coco/virtcontainers/state"
)

// LiveFiles is the process that shows files of the host to the guest.
type LiveFiles struct {
	Files
	proc hypervisor.Process
}

// Gone is closed when the process has ended; nil, which never is, without one.
func (l *LiveFiles) Gone() <-chan struct{} {
	if l == nil {
		return nil
	}
	return l.proc.Done()
}

// shared returns the files for the volumes, nil without any.
func (l *LiveFiles) shared() share.Files {
	if l == nil {
		return nil
	}
	return l
}

// liveDir is the directory, in the pod's state directory, that virtiofsd serves; it is empty on the host.
const liveDir = "live"

// NeedsFiles says whether the VM has a device for files of the host. Which containers a pod of
// Kubernetes will have is not known when its VM starts, so with host_path "live" each of its pods has one.
func NeedsFiles(o Options) (bool, error) {
	if o.First == nil {
		return o.Config.Runtime.HostPath == configs.HostPathLive, nil
	}
	binds, err := share.Plan(o.Config, o.First.Request)
	return slices.ContainsFunc(binds, func(b volume.Bind) bool { return b.Kind == volume.Shared }), err
}

// serveFiles starts the process, in the pod's cgroup like the VMM.
func (c *creation) serveFiles(ctx context.Context) error {
	if need, err := NeedsFiles(c.opts); err != nil || !need {
		return err
	}
	if c.opts.Host.Files == nil {
		return fmt.Errorf("files of the host are live, for which this host has no server: %w", errdefs.ErrNotImplemented)
	}
	level := slog.LevelInfo // of the mounts that somebody named for this container
	if c.opts.Config.Runtime.HostPath == configs.HostPathLive {
		level = slog.LevelWarn // of those that anybody's pods name
	}
	c.log.Log(ctx, level, "the VM is not shut off from the host: it reads and writes files that its containers mount",
		"pod", c.opts.ID)
	dir := filepath.Join(c.StateDir, liveDir)
	if err := os.Mkdir(dir, 0o755); err != nil { // in a private directory; containers see the mode
		return err
	}
	proc, err := c.opts.Host.Files.Begin(ctx, c.netns, dir)
	if err != nil {
		return err
	}
	c.u.Push("end the server of files", func(ctx context.Context) error { return hypervisor.End(ctx, proc) })
	id, err := state.Identify(proc.PID()) // as with the VMM, nothing is lost before the next line
	if err != nil {
		return err
	}
	if err := c.Journal.Update(func(p *state.Pod) { p.Helper = &id }); err != nil {
		return err
	}
	if err := cgroups.Apply(nil, c.leaves, proc.PID(), nil); err != nil {
		return err
	}
	files, socket, err := c.opts.Host.Files.Serve(ctx, proc, dir)
	if err != nil {
		return err
	}
	c.u.Push("close the server of files", func(context.Context) error {
		return errors.Join(closeOnce(socket), files.Close())
	})
	c.Files = &LiveFiles{files, proc}
	c.vmspec.HostFiles = &hypervisor.HostFiles{Tag: share.LiveTag, Socket: socket}
	return nil
}

// Death says how the process has ended, and its last words.
func (l *LiveFiles) Death() string {
	words := strings.TrimSpace(l.proc.Stderr())
	if words != "" {
		words = "; it says: " + words
	}
	return l.proc.ExitStatus() + words
}
