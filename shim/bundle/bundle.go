// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package bundle knows the files that the shim itself keeps in a container's bundle directory, and
// what the OCI spec there says about the container's place in a pod.
//
//	address      the address of the shim that serves the container (containerd 1.6 reads it)
//	shim.pid     the serving process, only in the bundle that it was started for
//	init.pid     the task's pid as containerd knows it
//	exit.json    how the container ended, once it has
//	options.pb   runtime options of a sandbox of the sandbox API, which come with `start` only
//
// The directory itself is containerd's: it makes and removes it.
package bundle

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

const (
	addressFile = "address"
	shimFile    = "shim.pid"
	initFile    = "init.pid"
	exitFile    = "exit.json"
	optionsFile = "options.pb"
)

// Dir is the path of a bundle directory.
type Dir string

// WriteAddress records which shim serves the container.
func (d Dir) WriteAddress(address string) error { return d.write(addressFile, []byte(address)) }

// Address returns what WriteAddress recorded.
func (d Dir) Address() (string, error) {
	data, err := os.ReadFile(d.path(addressFile))
	return strings.TrimSpace(string(data)), err
}

// Process identifies a process beyond the reuse of its number.
type Process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks since boot, field 22 of /proc/PID/stat
}

// ProcessOf identifies a running process.
func ProcessOf(pid int) (Process, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return Process{}, err
	}
	// The name in parentheses may hold anything; fields are counted after it. State is field 3.
	_, rest, ok := strings.Cut(string(stat[strings.LastIndexByte(string(stat), ')')+1:]), " ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 20 {
		return Process{}, fmt.Errorf("/proc/%d/stat is not understood: %w", pid, errdefs.ErrInternal)
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return Process{}, fmt.Errorf("/proc/%d/stat, start time: %w", pid, err)
	}
	return Process{PID: pid, Start: start}, nil
}

// WriteShim records the serving process.
func (d Dir) WriteShim(p Process) error { return d.writeJSON(shimFile, p) }

// Shim returns the serving process, if one was recorded and still runs.
func (d Dir) Shim() (Process, bool) {
	var p Process
	if d.readJSON(shimFile, &p) != nil {
		return Process{}, false
	}
	now, err := ProcessOf(p.PID)
	return p, err == nil && now == p
}

// WriteInit records the pid that containerd has for the task.
func (d Dir) WriteInit(pid uint32) error {
	return d.write(initFile, []byte(strconv.FormatUint(uint64(pid), 10)))
}

// Init returns what WriteInit recorded, or 0.
func (d Dir) Init() uint32 {
	data, err := os.ReadFile(d.path(initFile))
	if err != nil {
		return 0
	}
	pid, err := strconv.ParseUint(strings.TrimSpace(string(data)), 10, 32)
	if err != nil {
		return 0
	}
	return uint32(pid)
}

// Exit is how a container ended.
type Exit struct {
	Status uint32    `json:"status"`
	At     time.Time `json:"at"`
}

// WriteExit records the end of the container, for a `delete` after the shim is gone.
func (d Dir) WriteExit(e Exit) error { return d.writeJSON(exitFile, e) }

// Exit returns what WriteExit recorded.
func (d Dir) Exit() (Exit, bool) {
	var e Exit
	return e, d.readJSON(exitFile, &e) == nil && !e.At.IsZero()
}

// WriteOptions records the runtime options, an encoded google.protobuf.Any.
func (d Dir) WriteOptions(data []byte) error { return d.write(optionsFile, data) }

// Options returns what WriteOptions recorded; nothing if there was nothing.
func (d Dir) Options() ([]byte, error) {
	data, err := os.ReadFile(d.path(optionsFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return data, err
}

// HasSpec reports whether the bundle holds an OCI spec. One of the sandbox API does not.
func (d Dir) HasSpec() bool {
	_, err := os.Stat(d.path("config.json"))
	return err == nil
}

func (d Dir) path(name string) string { return filepath.Join(string(d), name) }

func (d Dir) writeJSON(name string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return d.write(name, data)
}

func (d Dir) readJSON(name string, v any) error {
	data, err := os.ReadFile(d.path(name))
	if err != nil {
		return err
	}
	return json.Unmarshal(data, v)
}

// write replaces a file atomically: readers see the new content or the old one.
func (d Dir) write(name string, data []byte) error {
	tmp, err := os.CreateTemp(string(d), "."+name+".*")
	if err != nil {
		return fmt.Errorf("write %s of the bundle: %w", name, err)
	}
	_, err = tmp.Write(data)
	err = errors.Join(err, tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), d.path(name))
	}
	if err != nil {
		_ = os.Remove(tmp.Name()) // the first error matters
		return fmt.Errorf("write %s of the bundle: %w", name, err)
	}
	return nil
}

// CheckName accepts what containerd accepts as an identifier, or a little more: names end up in
// paths and on command lines.
func CheckName(what, s string) error {
	const most = 128
	ok := s != "" && len(s) <= most
	for i := 0; ok && i < len(s); i++ {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case i > 0 && (c == '-' || c == '_' || c == '.'):
		default:
			ok = false
		}
	}
	if !ok {
		return fmt.Errorf("%s %q is not 1 to %d letters, digits, '-', '_' or '.' that start with a letter or digit: %w",
			what, s, most, errdefs.ErrInvalidArgument)
	}
	return nil
}
