// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package clhtest is a Cloud Hypervisor for tests: a process that takes the same command line, serves
// the same API, keeps a VM's state and behaves as the VMM's source says, of release 51, 53 or 54
// (commit ae44c29, 54.0-dev), with faults on demand. The releases differ in the statuses of refusals. The guest
// is an echo on the ports that listen, or a real one: then QEMU runs the VM behind the API.
//
// A test binary becomes the VMM: its TestMain calls Main when IsVMM says so. New makes a path for the
// driver to execute, and reads back what the process saw. Each request and each answer is checked
// against our description of the API and, where there is one, the VMM's own.
package clhtest

import (
	"bufio"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// Config says how the process behaves. The zero value is a VMM without faults.
type Config struct {
	Release  int      // 51, 53 or 54, whose statuses it answers with; 0: 54
	Version  string   // "": that of Release
	Features []string // nil: all of an SNP build

	// The names of calls, as in "vm.boot", upon which something happens.
	CrashOn   string // the process dies of a signal, without an answer
	ExitOn    string // the process ends with status 1 and a word on standard error
	HangOn    string // there is no answer
	HalfOn    string // half an answer, then the connection closes
	ClosingOn string // the VMM is ending, as of an error of a virtual processor: its API's thread still answers
	GarbageOn string // the answer is not HTTP
	// ErrorOn is answered with ErrorStatus and ErrorBody.
	ErrorOn     string
	ErrorStatus int
	ErrorBody   string
	// AfterDone makes HangOn and HalfOn happen after the call was carried out.
	AfterDone bool

	NoFiles     bool   // requests with descriptors are refused, as by an API server that cannot take them
	WrongPlaces bool   // devices are said to be on another bus
	KeepDevices bool   // the guest does not let go of devices
	SilentEject bool   // it does, but the event gets lost
	EjectOn     string // it does so late: upon this call
	BadEvents   bool   // events are cut short now and then
	GuestPorts  []int  // ports that listen; nil: the agent's
	GuestDelay  string // from boot until the guest's driver is up and its ports listen, as in "50ms"
	GuestNever  bool   // the guest's agent does not come up
	GuestSays   string // printed on the console at boot
	GuestEnds   string // after boot, what the guest does: "off", "reset", "panic"; "vcpu": its processor fails
	BadOK       bool   // CONNECT is answered with nonsense
	StayOnQuit  bool   // vmm.shutdown is answered, and nothing happens
	Logs        string // what it writes to its standard error at boot

	// QEMU is a binary that runs the VM in the VMM's place, so that there is a real guest behind the API: on a
	// machine whose root bus takes devices as Cloud Hypervisor's does. "": the guest is played.
	QEMU string

	Spec string // the VMM's own description, a file; "": only ours is used
}

// Request is a request that the process received.
type Request struct {
	Call     string          `json:"call"`
	Body     json.RawMessage `json:"body,omitempty"`
	Files    []FileID        `json:"files,omitempty"`
	Status   int             `json:"status"`             // of the answer; 0: none
	Problems []string        `json:"problems,omitempty"` // what the descriptions of the API say against it
	// files that the VMM opened because of it, in the order of the body
	Opened []FileID `json:"opened,omitempty"`
}

// FileID tells files apart.
type FileID struct {
	Dev, Ino uint64
}

// IDOf returns a file's identity.
func IDOf(t testing.TB, f *os.File) FileID {
	t.Helper()
	id, err := fileID(f)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// VMM is a fake to be launched once.
type VMM struct {
	// Path is what the driver executes.
	Path string
	// Paths is what the process reads besides; Kept what it writes to. They are for a jail.
	Paths, Kept []string
	t           testing.TB
}

const (
	configSuffix = ".config"
	journalName  = "requests"
)

// journalOf is where the process writes down its requests: outside of the directory that its program's bin is in.
func journalOf(program string) string {
	return filepath.Join(filepath.Dir(filepath.Dir(filepath.Dir(program))), "journal", journalName)
}

// New prepares a fake. When the test ends, requests that the descriptions refuse fail it.
func New(t testing.TB, c Config) *VMM {
	t.Helper()
	if c.Spec == "" {
		c.Spec = reference()
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	v := &VMM{Path: filepath.Join(t.TempDir(), "vmm/bin/cloud-hypervisor"), t: t}
	v.Kept = []string{filepath.Dir(journalOf(v.Path))}
	if c.Spec != "" {
		v.Paths = []string{c.Spec}
	}
	b, err := json.Marshal(c)
	for _, dir := range []string{filepath.Dir(v.Path), v.Kept[0]} {
		err = errors.Join(err, os.MkdirAll(dir, 0o755)) // in a jail the fake has a user of its own
	}
	if err == nil {
		err = errors.Join(os.Chmod(v.Kept[0], 0o777), os.WriteFile(v.Path+configSuffix, b, 0o644))
	}
	if err == nil {
		err = hardlink(exe, v.Path)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, r := range v.Requests() {
			for _, p := range r.Problems {
				t.Errorf("%s: %s", r.Call, p)
			}
		}
	})
	return v
}

// hardlink gives a program a second name, which it knows itself by, or copies it.
func hardlink(program, name string) error {
	if os.Link(program, name) == nil {
		return nil
	}
	b, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	return os.WriteFile(name, b, 0o755)
}

// Requests returns all requests so far, in the order of their answers.
func (v *VMM) Requests() []Request {
	v.t.Helper()
	f, err := os.Open(journalOf(v.Path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		v.t.Fatal(err)
	}
	defer f.Close()
	var out []Request
	for dec := json.NewDecoder(bufio.NewReader(f)); dec.More(); {
		var r Request
		if err := dec.Decode(&r); err != nil {
			v.t.Fatalf("the fake's journal: %v", err)
		}
		out = append(out, r)
	}
	return out
}

// Calls returns the names of the calls so far.
func (v *VMM) Calls() []string {
	v.t.Helper()
	var out []string
	for _, r := range v.Requests() {
		out = append(out, r.Call)
	}
	return out
}

// reference looks for the VMM's own description of its API beside the project.
func reference() string {
	dir, err := os.Getwd()
	if err != nil {
		return ""
	}
	for ; ; dir = filepath.Dir(dir) {
		f := filepath.Join(dir, "shared/reference/cloud-hypervisor.yaml")
		if _, err := os.Stat(f); err == nil {
			return f
		}
		if dir == "/" {
			return ""
		}
	}
}

// HaveReference tells whether requests are checked against the VMM's own description, too.
func HaveReference() bool { return reference() != "" }
