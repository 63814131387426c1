// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package bootstrap is how containerd starts, finds and cleans up after a shim.
//
// containerd runs the binary with the action `start`: it gets a socket, spawns the serving process
// with that socket and answers with the address. Three generations of that protocol are spoken:
// containerd 1.6 reads a plain address, 1.7 to 2.2 read JSON (and set MAX_SHIM_VERSION), 2.3 and
// later write a protobuf BootstrapParams to standard input and read a protobuf BootstrapResult. Before
// 2.3 standard input may hold the runtime options as a serialized Any, so it is taken for
// BootstrapParams only if it repeats the id and namespace of the flags.
//
// The serving process (Serve) lives until its last container is gone. The action `delete` frees the resources
// of a serving process that is gone. The caller provides the service and its clean-up.
package bootstrap

import (
	"errors"
	"flag"
	"fmt"
	"io"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/shim/bundle"
)

// The actions, as the word after the flags. Serving has none.
const (
	ActionServe  = ""
	ActionStart  = "start"
	ActionDelete = "delete"
)

// Invocation is the parsed command line.
type Invocation struct {
	Action        string
	Namespace     string
	ID            string
	Address       string // containerd's gRPC socket
	PublishBinary string // containerd's executable
	Bundle        string // of delete; otherwise the bundle is the working directory
	Socket        string // serve: listen here instead of on the inherited socket
	Debug         bool
	Version       bool
	Info          bool
}

// ParseArgs parses the arguments after the program name. Flags may stand before and after the
// action.
func ParseArgs(args []string) (Invocation, error) {
	var inv Invocation
	var ignored string
	fs := flag.NewFlagSet("containerd-shim-coco-v2", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.StringVar(&inv.Namespace, "namespace", "", "namespace that owns the shim")
	fs.StringVar(&inv.ID, "id", "", "id of the task")
	fs.StringVar(&inv.Address, "address", "", "containerd's gRPC address")
	fs.StringVar(&inv.PublishBinary, "publish-binary", "", "containerd's executable, for events")
	fs.StringVar(&inv.Bundle, "bundle", "", "bundle, when it is not the working directory")
	fs.StringVar(&inv.Socket, "socket", "", "socket to serve on")
	fs.StringVar(&ignored, "debug-socket", "", "accepted and not used")
	fs.BoolVar(&inv.Debug, "debug", false, "log debug messages")
	fs.BoolVar(&inv.Version, "v", false, "print the version")
	fs.BoolVar(&inv.Version, "version", false, "print the version")
	fs.BoolVar(&inv.Info, "info", false, "read options from stdin, print runtime information")
	for rest := args; ; {
		if err := fs.Parse(rest); err != nil {
			return Invocation{}, fmt.Errorf("arguments: %w: %w", err, errdefs.ErrInvalidArgument)
		}
		if fs.NArg() == 0 {
			break
		}
		if inv.Action != "" {
			return Invocation{}, fmt.Errorf("argument %q after action %q: %w", fs.Arg(0), inv.Action, errdefs.ErrInvalidArgument)
		}
		inv.Action, rest = fs.Arg(0), fs.Args()[1:]
	}
	return inv, inv.validate()
}

func (inv Invocation) validate() error {
	if inv.Version || inv.Info {
		return nil
	}
	switch inv.Action {
	case ActionServe, ActionStart, ActionDelete:
	default:
		return fmt.Errorf("action %q is not start or delete: %w", inv.Action, errdefs.ErrInvalidArgument)
	}
	return errors.Join(bundle.CheckName("namespace", inv.Namespace), bundle.CheckName("id", inv.ID))
}
