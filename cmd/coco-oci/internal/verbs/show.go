// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package verbs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"

	api "github.com/coco-shim/coco/api/containerd"
	"github.com/coco-shim/coco/cmd/coco-oci/internal/pod"
	"github.com/coco-shim/coco/cmd/coco-oci/internal/state"
)

// shown is a container as state and list print it.
type shown struct {
	OCIVersion  string            `json:"ociVersion"`
	ID          string            `json:"id"`
	PID         int               `json:"pid"` // of the stand-in; 0 when the container has stopped
	Status      string            `json:"status"`
	Bundle      string            `json:"bundle"`
	Rootfs      string            `json:"rootfs"`
	Created     time.Time         `json:"created"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Owner       string            `json:"owner"`
}

const stopped = "stopped"

func statusName(s api.Status) string {
	switch s {
	case api.Status_CREATED:
		return string(specs.StateCreated)
	case api.Status_RUNNING:
		return string(specs.StateRunning)
	case api.Status_PAUSED, api.Status_PAUSING:
		return "paused"
	}
	return stopped
}

// show asks the shim for a container's status. A container whose shim is gone has stopped.
func (o options) show(ctx context.Context, id string) (shown, error) {
	c, err := o.state().Load(id)
	if err != nil {
		return shown{}, err
	}
	s := shown{
		OCIVersion: specVersion, ID: id, Status: stopped, Bundle: c.Bundle, Rootfs: c.Rootfs, Created: c.Created,
		Annotations: c.Annotations,
	}
	if c.UID == 0 {
		s.Owner = "root"
	}
	shim, err := pod.Dial(c.Address)
	if err != nil {
		return s, nil //nolint:nilerr // see above
	}
	defer func() { _ = shim.Close() }() // all calls are answered
	st, err := shim.State(ctx, id)
	if err != nil {
		if errdefs.IsNotFound(err) {
			err = nil
		}
		return s, err
	}
	s.Status = statusName(st)
	if s.Status != stopped {
		s.PID = c.StandIn.PID
	}
	return s, nil
}

func printState(ctx context.Context, o options, args []string) (int, error) {
	fl := newFlags("state")
	if err := parse(fl, args, 1, 1); err != nil {
		return 0, err
	}
	s, err := o.show(ctx, fl.Arg(0))
	if err != nil {
		return 0, err
	}
	return 0, printJSON(o.stdout, s, "  ")
}

func printJSON(w io.Writer, v any, indent string) error {
	data, err := json.MarshalIndent(v, "", indent)
	if err != nil {
		return fmt.Errorf("encode the answer: %w", err)
	}
	_, err = w.Write(append(data, '\n'))
	return err
}

// list shows the containers whose shims answer, and returns an error that names the others.
func list(ctx context.Context, o options, args []string) (int, error) {
	fl := newFlags("list")
	var format string
	var quiet bool
	for _, n := range []string{"format", "f"} {
		fl.StringVar(&format, n, "table", "")
	}
	for _, n := range []string{"quiet", "q"} {
		fl.BoolVar(&quiet, n, false, "")
	}
	if err := parse(fl, args, 0, 0); err != nil {
		return 0, err
	}
	if format != "table" && format != "json" {
		return 0, fmt.Errorf("list: --format %q is not table or json: %w", format, errdefs.ErrInvalidArgument)
	}
	ids, err := o.state().List()
	if err != nil {
		return 0, err
	}
	all := []shown{}
	var failed []error
	for _, id := range ids {
		s, err := o.show(ctx, id)
		switch {
		case errdefs.IsNotFound(err): // is being made or deleted
		case err != nil:
			failed = append(failed, fmt.Errorf("list: container %s: %w", id, err))
		default:
			all = append(all, s)
		}
	}
	return 0, errors.Join(append(failed, printList(o.stdout, all, format, quiet))...)
}

// printList prints containers as a table or JSON, or only their ids.
func printList(out io.Writer, all []shown, format string, quiet bool) error {
	switch {
	case quiet:
		for _, s := range all {
			if _, err := fmt.Fprintln(out, s.ID); err != nil {
				return err
			}
		}
		return nil
	case format == "json":
		return json.NewEncoder(out).Encode(all)
	}
	w := tabwriter.NewWriter(out, 12, 1, 3, ' ', 0)
	var b strings.Builder
	b.WriteString("ID\tPID\tSTATUS\tBUNDLE\tCREATED\tOWNER\n")
	for _, s := range all {
		fmt.Fprintf(&b, "%s\t%d\t%s\t%s\t%s\t%s\n", s.ID, s.PID, s.Status, s.Bundle,
			s.Created.Format(time.RFC3339Nano), s.Owner)
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return err
	}
	return w.Flush()
}

func update(ctx context.Context, o options, args []string) (int, error) {
	fl := newFlags("update")
	var from string
	for _, n := range []string{"resources", "r"} {
		fl.StringVar(&from, n, "", "")
	}
	if err := parse(fl, args, 1, 1); err != nil {
		return 0, err
	}
	if from == "" {
		return 0, fmt.Errorf("update: limits come in a file: --resources FILE, or - for standard input: %w",
			errdefs.ErrInvalidArgument)
	}
	in := os.Stdin
	if from != "-" {
		f, err := os.Open(from)
		if err != nil {
			return 0, fmt.Errorf("update: %w", err)
		}
		defer func() { _ = f.Close() }() // only read
		in = f
	}
	value, err := io.ReadAll(io.LimitReader(in, maxSpec))
	if err != nil {
		return 0, fmt.Errorf("update: read the limits: %w", err)
	}
	return 0, o.connected(fl.Arg(0), func(c state.Container, shim pod.Client) error {
		return shim.Do(ctx, "Update", &api.UpdateTaskRequest{
			Id: c.ID, Resources: &anypb.Any{TypeUrl: "LinuxResources", Value: value},
		})
	})
}

func features(_ context.Context, o options, args []string) (int, error) {
	if err := parse(newFlags("features"), args, 0, 0); err != nil {
		return 0, err
	}
	return 0, printJSON(o.stdout, map[string]any{
		"ociVersionMin": "1.0.0",
		"ociVersionMax": specVersion,
		"hooks":         []string{"prestart", "createRuntime", "poststart", "poststop"},
		"mountOptions":  []string{"bind", "nodev", "noexec", "nosuid", "rbind", "ro", "rprivate", "rw", "private"},
		"linux": map[string]any{
			"namespaces": []string{"cgroup", "ipc", "mount", "network", "pid", "uts"},
			"cgroup":     map[string]bool{"v1": true, "v2": true, "systemd": true, "systemdUser": false},
			"seccomp":    map[string]bool{"enabled": true},
			"apparmor":   map[string]bool{"enabled": false},
			"selinux":    map[string]bool{"enabled": false},
		},
		"annotations":                        map[string]string{},
		"potentiallyUnsafeConfigAnnotations": []string{},
	}, "    ")
}

// spec writes an example of a specification, with which a container runs sh.
func spec(_ context.Context, _ options, args []string) (int, error) {
	fl := newFlags("spec")
	var dir string
	for _, n := range []string{"bundle", "b"} {
		fl.StringVar(&dir, n, ".", "")
	}
	if err := parse(fl, args, 0, 0); err != nil {
		return 0, err
	}
	path := filepath.Join(dir, "config.json")
	if exists(path) {
		return 0, fmt.Errorf("spec: file config.json exists. Remove it first: %w", errdefs.ErrAlreadyExists)
	}
	data, err := json.MarshalIndent(example(), "", "\t")
	if err != nil {
		return 0, fmt.Errorf("spec: %w", err)
	}
	return 0, os.WriteFile(path, append(data, '\n'), 0o644) // as runc's
}
