// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package pipe

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	_ "github.com/coco-shim/coco/api/agent" // has the messages
)

// Verdict is an answer of a policy. The zero value denies.
type Verdict struct {
	Allowed bool
	Reason  string       // why not
	Commit  func() error // to be called once the request was handled; nil: nothing changes
}

// Judge is a compiled policy.
type Judge interface {
	Ask(proto.Message) (Verdict, error)
}

// maxPending bounds the verdicts whose requests are being handled. The oldest is forgotten; its commit is an error.
const maxPending = 64

// Serve reads a policy and questions from r and answers them on w, until r ends.
func Serve(r io.Reader, w io.Writer, compile func(text string) (Judge, error)) error {
	text, err := readFrame(r)
	if err != nil {
		return fmt.Errorf("read the policy: %w", err)
	}
	judge, err := compile(string(text))
	if err != nil {
		return writeFrame(w, []byte(err.Error()))
	}
	if err := writeFrame(w); err != nil {
		return err
	}
	s := &server{judge: judge, pending: map[uint64]func() error{}}
	for {
		frame, err := readFrame(r)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read a question: %w", err)
		}
		if err := writeFrame(w, s.answer(frame)...); err != nil {
			return err
		}
	}
}

type server struct {
	judge   Judge
	last    uint64
	pending map[uint64]func() error
}

func (s *server) answer(frame []byte) [][]byte {
	kind, rest := split(frame)
	var err error
	switch kind {
	case kindAsk:
		var v Verdict
		if v, err = s.ask(rest); err == nil && v.Allowed {
			return [][]byte{{kindYes}, number(s.keep(v.Commit))}
		}
		if err == nil {
			return [][]byte{{kindNo}, []byte(v.Reason)}
		}
	case kindCommit:
		if err = s.commit(rest); err == nil {
			return [][]byte{{kindYes}}
		}
	default:
		err = fmt.Errorf("a frame of kind %q", kind)
	}
	return [][]byte{{kindError}, []byte(err.Error())}
}

func (s *server) ask(frame []byte) (Verdict, error) {
	name, wire, ok := bytes.Cut(frame, []byte{0})
	if !ok {
		return Verdict{}, errors.New("a question without a message")
	}
	typ, err := protoregistry.GlobalTypes.FindMessageByName(protoreflect.FullName(name))
	if err != nil {
		return Verdict{}, fmt.Errorf("%.80q: %w", name, err)
	}
	m := typ.New().Interface()
	if err := proto.Unmarshal(wire, m); err != nil {
		return Verdict{}, fmt.Errorf("decode %s: %w", name, err)
	}
	return s.judge.Ask(m)
}

// keep notes what a verdict's commit does and returns its number, 0 if it does nothing.
func (s *server) keep(commit func() error) uint64 {
	if commit == nil {
		return 0
	}
	s.last++
	s.pending[s.last] = commit
	delete(s.pending, s.last-maxPending)
	return s.last
}

func (s *server) commit(frame []byte) error {
	n, err := parseNumber(frame)
	if err != nil {
		return err
	}
	commit := s.pending[n]
	if commit == nil {
		return fmt.Errorf("verdict %d is not known", n)
	}
	delete(s.pending, n)
	return commit()
}
