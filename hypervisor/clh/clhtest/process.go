// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package clhtest

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// IsVMM tells whether this process was executed by a driver as the VMM.
func IsVMM() bool { return len(os.Args) > 1 && os.Args[1] == "--api-socket" }

// Main is the life of the process. It does not return.
func Main() {
	fatal(run())
}

// run serves until the process ends: it returns only when something is wrong.
func run() error {
	b, err := os.ReadFile(os.Args[0] + configSuffix)
	if err != nil {
		return err
	}
	var c Config
	if err := json.Unmarshal(b, &c); err != nil {
		return err
	}
	api, events, err := arguments(os.Args[1:])
	if err != nil {
		return err
	}
	listener, err := net.FileListener(os.NewFile(uintptr(api), "api"))
	if err != nil {
		return fmt.Errorf("--api-socket: %w", err)
	}
	journal, err := os.OpenFile(journalOf(os.Args[0]), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	checks, err := newChecker(c.Spec)
	if err != nil {
		return err
	}
	// The real one writes without blocking.
	if err := syscall.SetNonblock(events, true); err != nil {
		return fmt.Errorf("--event-monitor: %w", err)
	}
	s := &server{config: c, vmm: newVMM(c, os.NewFile(uintptr(events), "events")), journal: journal, checks: checks}
	s.vmm.event("vmm", "starting", nil)
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		go s.serve(conn.(*net.UnixConn))
	}
}

// arguments understands the driver's command line, strictly.
func arguments(args []string) (api, events int, err error) {
	number := func(name, value string) (int, error) {
		v, ok := strings.CutPrefix(value, "fd=")
		n, err := strconv.Atoi(v)
		if !ok || err != nil {
			return 0, fmt.Errorf("error parsing %s %s", name, value)
		}
		return n, nil
	}
	for ; len(args) >= 2; args = args[2:] {
		switch args[0] {
		case "--api-socket":
			api, err = number(args[0], args[1])
		case "--event-monitor":
			events, err = number(args[0], args[1])
		case "--seccomp":
			if _, perr := strconv.ParseBool(args[1]); perr != nil {
				err = perr
			}
		default:
			err = fmt.Errorf("unexpected argument '%s' found", args[0])
		}
		if err != nil {
			return 0, 0, err
		}
	}
	if len(args) != 0 || api == 0 || events == 0 {
		return 0, 0, errors.New("incomplete arguments")
	}
	return api, events, nil
}

func fileID(f *os.File) (FileID, error) {
	st, err := f.Stat()
	if err != nil {
		return FileID{}, err
	}
	s := st.Sys().(*syscall.Stat_t) // Linux
	return FileID{s.Dev, s.Ino}, nil
}
