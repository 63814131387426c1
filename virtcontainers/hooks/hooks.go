// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package hooks runs OCI hooks on the host, against the VMM's process, because the pod's network is made in that
// process's namespaces. Hooks of the container's own namespaces do not exist here
// (package plan/request refuses them).
package hooks

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// DefaultTimeout bounds a hook that states no time-out: a hook that hangs must not keep a pod.
const DefaultTimeout = 30 * time.Second

// waitDelay is how long output is read after a hook has ended, when it left a child that holds
// its descriptors.
const waitDelay = time.Second

// maxOutput bounds what an error quotes of a hook's output.
const maxOutput = 2048

// Run executes the hooks of one kind in order with state on their standard input, and stops at the
// first that fails.
func Run(ctx context.Context, kind string, list []specs.Hook, state specs.State) error {
	if len(list) == 0 {
		return nil
	}
	input, err := json.Marshal(state)
	if err != nil {
		return fmt.Errorf("%s hooks of %s: encode the state: %w", kind, state.ID, err)
	}
	for i, h := range list {
		if err := run(ctx, h, input); err != nil {
			return fmt.Errorf("%s hook %d (%s) of %s: %w", kind, i, h.Path, state.ID, err)
		}
	}
	return nil
}

// RunAll executes all hooks even when some fail, as the specification asks for poststop.
func RunAll(ctx context.Context, kind string, list []specs.Hook, state specs.State) error {
	var errs []error
	for _, h := range list {
		errs = append(errs, Run(ctx, kind, []specs.Hook{h}, state))
	}
	return errors.Join(errs...)
}

func run(ctx context.Context, h specs.Hook, input []byte) error {
	if !filepath.IsAbs(h.Path) {
		return errors.New("the path is not absolute")
	}
	timeout := DefaultTimeout
	if h.Timeout != nil {
		if *h.Timeout <= 0 {
			return fmt.Errorf("the time-out of %d s is not positive", *h.Timeout)
		}
		timeout = time.Duration(*h.Timeout) * time.Second
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("no end within %s", timeout))
	defer cancel()
	cmd := exec.CommandContext(ctx, h.Path) // the administrator's hook
	if len(h.Args) > 0 {
		cmd.Args = h.Args
	}
	cmd.Env = h.Env
	if cmd.Env == nil {
		cmd.Env = []string{} // nil would hand over our own
	}
	var out bytes.Buffer
	sink := &limited{buf: &out} // one writer for both: exec then uses one goroutine
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(input), sink, sink
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = waitDelay
	err := cmd.Run()
	if err == nil || errors.Is(err, exec.ErrWaitDelay) {
		return nil
	}
	if ctx.Err() != nil {
		err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
	}
	if s := strings.TrimSpace(out.String()); s != "" {
		return fmt.Errorf("%w: %s", err, s)
	}
	return err
}

// limited keeps the first maxOutput bytes and swallows the rest.
type limited struct{ buf *bytes.Buffer }

func (l *limited) Write(p []byte) (int, error) {
	if room := maxOutput - l.buf.Len(); room > 0 {
		l.buf.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

// State is the state that the hooks of a specification read. pid is the VMM's.
func State(s *specs.Spec, id, bundle string, status specs.ContainerState, pid int) specs.State {
	return specs.State{
		Version: s.Version, ID: id, Status: status, Pid: pid, Bundle: bundle, Annotations: s.Annotations,
	}
}

// RunStart runs the hooks that make the container's surroundings.
func RunStart(ctx context.Context, h *specs.Hooks, state specs.State) error {
	if h == nil {
		return nil
	}
	//lint:ignore SA1019 engines still use it
	if err := Run(ctx, "prestart", h.Prestart, state); err != nil {
		return err
	}
	return Run(ctx, "createRuntime", h.CreateRuntime, state)
}
