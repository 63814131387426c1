// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package task

import (
	"context"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/virtcontainers"
	vcprocess "github.com/coco-shim/coco/virtcontainers/process"
	"github.com/coco-shim/coco/virtcontainers/stream"
)

// Pod is the pod of a service; package virtcontainers has the real one.
type Pod interface {
	podLife
	CreateContainer(ctx context.Context, r virtcontainers.ContainerRequest) (Container, stream.Streams, error)
}

type podLife interface {
	PID() int
	Done() <-chan struct{}
	Err() error
	// EndVM ends the VM, whose processes have ended. The rest stays until Shutdown.
	EndVM(ctx context.Context) error
	Shutdown(ctx context.Context) error
}

// Container is the handle of a container in a pod.
type Container interface {
	containerUse
	// Init is the first process. Starting it starts the container, deleting it removes the container.
	Init() Process
	// Exec records a further process, which the guest gets in its Start.
	Exec(r virtcontainers.ExecRequest) (Process, error)
}

type containerUse interface {
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
	Update(ctx context.Context, r *specs.LinuxResources) error
	Stats(ctx context.Context) (*agent.StatsContainerResponse, error)
}

// Process is the handle of a process.
type Process interface {
	Start(ctx context.Context) (stream.Streams, error)
	Wait(ctx context.Context) (vcprocess.ExitStatus, error)
	Kill(ctx context.Context, sig uint32, all bool) error
	Resize(ctx context.Context, w, h uint32) error
	State() (vcprocess.State, vcprocess.ExitStatus)
	Delete(ctx context.Context) (vcprocess.ExitStatus, error)
}

// podOf is a pod whose containers and processes are of types of its own.
type podOf[C any] interface {
	podLife
	CreateContainer(ctx context.Context, r virtcontainers.ContainerRequest) (C, stream.Streams, error)
}

type containerOf[P any] interface {
	containerUse
	Init() P
	Exec(r virtcontainers.ExecRequest) (P, error)
}

// PodOf makes a Pod of one whose methods return handles of its own types: a method of Go's implements that of an
// interface only if it returns the very same type.
func PodOf[C containerOf[P], P Process](p podOf[C]) Pod { return pod[C, P]{p, p} }

type pod[C containerOf[P], P Process] struct {
	podLife
	of podOf[C]
}

func (p pod[C, P]) CreateContainer(ctx context.Context, r virtcontainers.ContainerRequest) (Container, stream.Streams,
	error,
) {
	c, s, err := p.of.CreateContainer(ctx, r)
	if err != nil {
		return nil, s, err // not c: a nil pointer is not a nil Container
	}
	return handle[C, P]{c, c}, s, nil
}

type handle[C containerOf[P], P Process] struct {
	containerUse
	of C
}

func (c handle[C, P]) Init() Process { return c.of.Init() }

func (c handle[C, P]) Exec(r virtcontainers.ExecRequest) (Process, error) {
	p, err := c.of.Exec(r)
	if err != nil {
		return nil, err
	}
	return p, nil
}
