// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coco-shim/coco/internal/worktest"
)

// Generated code reads this package's messages, and the other way round.
func TestGeneratedCodeAgrees(t *testing.T) {
	at := time.Unix(1700000000, 42)
	var value, m Message
	value.Time(1, at)
	m.Any(1, "x.Y", value)
	m.Number(2, 0)
	m.Text(3, "")
	f, err := Parse(m)
	if err != nil || len(f) != 1 {
		t.Fatalf("Parse = %v, %v, want one field: zeros are not written", f, err)
	}
	var a anypb.Any
	if err := proto.Unmarshal(f[1][0].Bytes, &a); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&anypb.Any{TypeUrl: "x.Y", Value: value}, &a, protocmp.Transform()); diff != "" {
		t.Errorf("Any (-want +got):\n%s", diff)
	}
	var ts timestamppb.Timestamp
	if g, err := Parse(a.GetValue()); err != nil || proto.Unmarshal(g[1][0].Bytes, &ts) != nil || !ts.AsTime().Equal(at) {
		t.Errorf("timestamp = %v, %v, want %v", ts.AsTime(), err, at)
	}

	data, err := proto.Marshal(&anypb.Any{TypeUrl: "a", Value: []byte("b")})
	if err != nil {
		t.Fatal(err)
	}
	if f, err := Parse(data); err != nil || f.Text(1) != "a" || f.Text(2) != "b" || f.Text(3) != "" {
		t.Errorf("Parse = %v, %v", f, err)
	}
}

func TestReader(t *testing.T) {
	var e, m Message
	e.Text(1, "k")
	e.Text(2, "v")
	m.Sub(1, e)
	m.Sub(2, nil)
	m.Number(3, 7)
	m.Text(4, "x")
	m.Text(4, "y")
	var r Reader
	f := r.Message(m)
	if diff := cmp.Diff(map[string]string{"k": "v"}, r.Map(f, 1)); diff != "" {
		t.Errorf("Map:\n%s", diff)
	}
	if _, ok := r.Sub(f, 2); !ok {
		t.Error("an empty message is not there")
	}
	if _, ok := r.Sub(f, 9); ok {
		t.Error("an absent message is there")
	}
	if diff := cmp.Diff([]string{"x", "y"}, f.Texts(4)); diff != "" || f.Number(3) != 7 ||
		f.Text(4) != "y" || r.Err != nil {
		t.Errorf("fields = %v, %v", f, r.Err)
	}
	r.Map(Fields{1: {{Bytes: []byte{0xff}}}}, 1)
	if r.Err == nil {
		t.Error("a broken entry is no error")
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte{0x0a, 1, 'x', 0x10, 5, 0x1d, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		defer worktest.Bound(t, len(b))()
		fields, err := Parse(b)
		if err != nil {
			return
		}
		n := 0
		for _, v := range fields {
			for _, e := range v {
				n += len(e.Bytes)
			}
		}
		if n > len(b) {
			t.Errorf("%d bytes of fields in %d", n, len(b))
		}
	})
}
