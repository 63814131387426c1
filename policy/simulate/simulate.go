// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package simulate asks a policy about a list of requests, as the agent asks it.
//
// A log has one JSON object a line: {"kind": "CreateContainer", "request": {…}}. kind is the method, or the name of
// its message; the request has the protocol's JSON form, in which an unknown member is an error. A line of kind
// "Exited" with {"container_id", "exit_code"} tells of a container's end. Lines are taken in order, and a request that
// is allowed counts as handled.
package simulate

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/policy/engine"
)

// MaxLine bounds a line of a log.
const MaxLine = 8 << 20

// exited is the kind of lines that tell of a container's end.
const exited = "Exited"

// Verdict is the answer to one line.
type Verdict struct {
	Line   int    `json:"line"`
	Kind   string `json:"kind"`
	Denial string `json:"denial,omitempty"` // empty: allowed
}

// line is one of a log.
type line struct {
	Kind    string          `json:"kind"`
	Request json.RawMessage `json:"request"`
}

// Run asks the policy about each line of a log. The error tells of a line that cannot be read.
func Run(p *policy.Policy, log io.Reader) ([]Verdict, error) {
	e := engine.New(p)
	return Each(log, func(kind string, request json.RawMessage) (string, error) { return ask(e, kind, request) })
}

// Each asks about each line of a log. ask returns why a request is denied, "" if it is allowed, or that it cannot be
// read.
func Each(log io.Reader, ask func(kind string, request json.RawMessage) (denial string, err error)) ([]Verdict, error) {
	in := bufio.NewScanner(log)
	in.Buffer(nil, MaxLine)
	out := []Verdict{}
	for n := 1; in.Scan(); n++ {
		if len(bytes.TrimSpace(in.Bytes())) == 0 {
			continue
		}
		var l line
		dec := json.NewDecoder(bytes.NewReader(in.Bytes()))
		dec.DisallowUnknownFields()
		err := dec.Decode(&l)
		v := Verdict{Line: n, Kind: l.Kind}
		if err == nil {
			v.Denial, err = ask(l.Kind, l.Request)
		}
		if err != nil {
			return out, fmt.Errorf("line %d: %w", n, err)
		}
		out = append(out, v)
	}
	if err := in.Err(); err != nil {
		return out, fmt.Errorf("read the log: %w", err)
	}
	return out, nil
}

func ask(e *engine.Engine, kind string, request json.RawMessage) (denial string, err error) {
	if kind == exited {
		var end struct {
			ContainerID string `json:"container_id"`
			ExitCode    int    `json:"exit_code"`
		}
		if err := json.Unmarshal(request, &end); err != nil {
			return "", fmt.Errorf("%s: %w", kind, err)
		}
		e.Exited(end.ContainerID, end.ExitCode)
		return "", nil
	}
	method, req, err := message(kind)
	if err != nil {
		return "", err
	}
	if len(request) > 0 {
		if err := protojson.Unmarshal(request, req); err != nil {
			return "", fmt.Errorf("%s: %w", kind, err)
		}
	}
	grant, err := e.Check(method, req)
	if err != nil {
		return err.Error(), nil
	}
	grant.Apply()
	grant.Commit()
	return "", nil
}

// message finds the method and the empty request of a kind.
func message(kind string) (method string, req proto.Message, err error) {
	services := (&agent.CreateContainerRequest{}).ProtoReflect().Descriptor().ParentFile().Services()
	for i := range services.Len() {
		methods := services.Get(i).Methods()
		for j := range methods.Len() {
			m := methods.Get(j)
			if !names(m, kind) {
				continue
			}
			t, err := protoregistry.GlobalTypes.FindMessageByName(m.Input().FullName())
			if err != nil {
				return "", nil, fmt.Errorf("kind %q: %w", kind, err)
			}
			return "/" + string(services.Get(i).FullName()) + "/" + string(m.Name()), t.New().Interface(), nil
		}
	}
	return "", nil, fmt.Errorf("kind %.80q is no method of the agent's protocol", kind)
}

func names(m protoreflect.MethodDescriptor, kind string) bool {
	return string(m.Name()) == strings.TrimSuffix(kind, "Request") || string(m.Input().Name()) == kind
}
