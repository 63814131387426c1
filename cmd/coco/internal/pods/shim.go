// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	api "github.com/coco-shim/coco/api/containerd"
	"github.com/coco-shim/coco/shim/bundle"
)

// maxSpec bounds a container's specification; with all annotations of Kubernetes it has some hundred KiB.
const maxSpec = 4 << 20

// bundleOf returns the bundle of the pod whose metrics are served at a socket: the kernel tells which process listens
// there, and a shim works in its pod's bundle. Tests replace it.
var bundleOf = func(socket string) (bundle.Dir, error) {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return "", fmt.Errorf("find the shim: %w", err)
	}
	defer conn.Close()
	raw, err := conn.SyscallConn()
	if err != nil {
		return "", fmt.Errorf("find the shim: %w", err)
	}
	var peer *unix.Ucred
	cerr := raw.Control(func(fd uintptr) {
		peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err := errors.Join(err, cerr); err != nil {
		return "", fmt.Errorf("find the shim behind %s: %w", socket, err)
	}
	dir, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(int(peer.Pid)), "cwd"))
	if err != nil {
		return "", fmt.Errorf("find the bundle of shim %d: %w", peer.Pid, err)
	}
	return bundle.Dir(dir), nil
}

// ReadSpec reads the OCI specification in a bundle.
func ReadSpec(dir string) (*specs.Spec, error) {
	f, err := os.Open(filepath.Join(dir, "config.json"))
	if err != nil {
		return nil, fmt.Errorf("read the container's specification: %w", err)
	}
	defer f.Close()
	var s specs.Spec
	if err := json.NewDecoder(io.LimitReader(f, maxSpec)).Decode(&s); err != nil {
		return nil, fmt.Errorf("read the container's specification %s: %w", f.Name(), err)
	}
	return &s, nil
}

// Task is a connection to a shim's task service, which containerd uses too.
type Task struct{ client *ttrpc.Client }

func dialTask(ctx context.Context, dir bundle.Dir) (Task, error) {
	address, err := dir.Address()
	if err != nil {
		return Task{}, fmt.Errorf("find the shim's socket: %w", err)
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", strings.TrimPrefix(address, "unix://"))
	if err != nil {
		return Task{}, fmt.Errorf("the shim does not answer: %w", err)
	}
	return Task{ttrpc.NewClient(conn)}, nil
}

// Close ends the connection. Calls that wait fail.
func (t Task) Close() { _ = t.client.Close() } // nothing is lost: every call has its answer

// Call makes one call; an error has its class of errdefs.
func (t Task) Call(ctx context.Context, method string, in, out proto.Message) error {
	return errgrpc.ToNative(t.client.Call(ctx, "containerd.task.v2.Task", method, in, out))
}

// State asks for the state of a container's first process.
func (t Task) State(ctx context.Context, id string) (*api.StateResponse, error) {
	out := &api.StateResponse{}
	if err := t.Call(ctx, "State", &api.StateRequest{Id: id}, out); err != nil {
		return nil, fmt.Errorf("container %s: %w", id, err)
	}
	return out, nil
}

// choose returns the container that a user means: by name, by the beginning of its id, or the only one.
func (v view) choose(name string) (*containerView, error) {
	var fits []*containerView
	var names []string
	for _, c := range v.Containers {
		if c.ID == v.ID && c.Name == "" && v.Engine == "kubernetes" {
			continue // the sandbox: nothing runs in the guest for it
		}
		if name == c.ID || name != "" && name == c.Name {
			return c, nil
		}
		if name == "" || strings.HasPrefix(c.ID, name) {
			fits = append(fits, c)
		}
		if names = append(names, c.Name); c.Name == "" {
			names[len(names)-1] = Short(c.ID)
		}
	}
	switch {
	case len(fits) == 1:
		return fits[0], nil
	case len(names) == 0:
		return nil, fmt.Errorf("pod %s has no containers", v.Name)
	case name == "":
		return nil, fmt.Errorf("pod %s has %d containers; choose one with -c: %s", v.Name, len(fits),
			strings.Join(names, ", "))
	}
	return nil, fmt.Errorf("pod %s has %d containers called %q; it has %s", v.Name, len(fits), name,
		strings.Join(names, ", "))
}

// Target is a container that a user named, with a connection to the shim of its pod.
type Target struct {
	Engine        string // kubernetes, docker or ctr
	Pod, PodUID   string // name; Kubernetes' id
	ID, Container string // of the container: id, and its name in Kubernetes
	Task
}

// Open finds a pod and one of its containers and connects to the pod's shim.
func Open(ctx context.Context, config, pod, container string) (t Target, err error) {
	dir, err := stateDir(config)
	if err != nil {
		return t, err
	}
	all, gerr := views(ctx, dir)
	v, err := find(all, pod)
	if err != nil {
		return t, errors.Join(err, gerr)
	}
	c, err := v.choose(container)
	if err != nil {
		return t, err
	}
	t = Target{Engine: v.Engine, Pod: v.Name, PodUID: v.uid, ID: c.ID, Container: c.Name}
	b, err := bundleOf(v.socket)
	if err != nil {
		return t, fmt.Errorf("pod %s: %w", v.Name, err)
	}
	if t.Task, err = dialTask(ctx, b); err != nil {
		return t, fmt.Errorf("pod %s: %w", v.Name, err)
	}
	return t, nil
}
