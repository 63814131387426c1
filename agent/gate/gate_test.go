// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"bytes"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/internal/worktest"
)

// strange is an encoded field of a number that no message has.
func strange(n protowire.Number) []byte {
	return protowire.AppendVarint(protowire.AppendTag(nil, n, protowire.VarintType), 1)
}

func request() *pb.CreateContainerRequest {
	return &pb.CreateContainerRequest{
		ContainerId: "c", Storages: []*pb.Storage{{Driver: "local"}, {Driver: "bind", FsGroup: &pb.FSGroup{GroupId: 1}}},
		OCI: &pb.Spec{Linux: &pb.Linux{Sysctl: map[string]string{"a": "b"}, Resources: &pb.LinuxResources{}}},
	}
}

func TestUnknownFieldsAreRefusedByName(t *testing.T) {
	inMap := &pb.CgroupStats{HugetlbStats: map[string]*pb.HugetlbStats{"2MB": {}}}
	inMap.HugetlbStats["2MB"].ProtoReflect().SetUnknown(strange(9))
	for _, tc := range []struct {
		name  string
		m     proto.Message
		spoil func(*pb.CreateContainerRequest)
		want  string // "": admitted
	}{
		{name: "nothing"},
		{
			name:  "at the top",
			spoil: func(r *pb.CreateContainerRequest) { r.ProtoReflect().SetUnknown(strange(999)) },
			want:  "CreateContainerRequest: field 999, which",
		},
		{
			name:  "two messages down",
			spoil: func(r *pb.CreateContainerRequest) { r.OCI.Linux.ProtoReflect().SetUnknown(strange(1000)) },
			want:  "CreateContainerRequest.OCI.Linux: field 1000, which",
		},
		{
			name:  "in a list",
			spoil: func(r *pb.CreateContainerRequest) { r.Storages[1].FsGroup.ProtoReflect().SetUnknown(strange(7)) },
			want:  "CreateContainerRequest.storages[1].fs_group: field 7, which",
		},
		{
			name: "a known number with another type",
			spoil: func(r *pb.CreateContainerRequest) {
				r.OCI.Linux.Resources.ProtoReflect().SetUnknown(strange(2))
			},
			want: "CreateContainerRequest.OCI.Linux.Resources: field 2 (Memory) with wire type 0, which",
		},
		{name: "in a map", m: inMap, want: `CgroupStats.hugetlb_stats["2MB"]: field 9, which`},
	} {
		m := tc.m
		if m == nil {
			r := request()
			if tc.spoil != nil {
				tc.spoil(r)
			}
			m = r
		}
		wire, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		back := m.ProtoReflect().New().Interface()
		if err := proto.Unmarshal(wire, back); err != nil {
			t.Fatal(err)
		}
		err = Message(back)
		if tc.want == "" && err != nil || tc.want != "" &&
			(!errdefs.IsInvalidArgument(err) || !strings.HasPrefix(err.Error(), tc.want)) {
			t.Errorf("%s: Message = %v, want %q", tc.name, err, tc.want)
		}
	}
}

// FuzzMessage: in a message that is admitted, nothing was left aside by the decoder.
func FuzzMessage(f *testing.F) {
	for _, m := range []*pb.CreateContainerRequest{{}, request()} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(append(b, strange(1000)...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		defer worktest.Bound(t, len(b))()
		all, known := &pb.CreateContainerRequest{}, &pb.CreateContainerRequest{}
		if proto.Unmarshal(b, all) != nil {
			return
		}
		if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(b, known); err != nil {
			t.Fatal(err)
		}
		if err := Message(all); (err == nil) != proto.Equal(all, known) {
			t.Errorf("Message = %v for\n%v\nof which known is\n%v", err, all, known)
		}
	})
}

// FuzzGreeting: exactly one line is read, and a number that is accepted is the one that was written.
func FuzzGreeting(f *testing.F) {
	f.Add([]byte("stream 7\nrest"))
	f.Add([]byte("stream 4294967296\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		defer worktest.Bound(t, len(b))()
		r := bytes.NewReader(b)
		line, err := readLine(r)
		if err != nil {
			return
		}
		if used := len(b) - r.Len(); used != len(line)+1 || used > maxGreeting {
			t.Errorf("%q: read %d bytes", b, used)
		}
		g := Greeting{Word: contract.StreamWord, Max: 1 << 20}
		if n, err := g.parse(line); err == nil && (n == 0 || n > g.Max) {
			t.Errorf("%q is number %d", line, n)
		}
	})
}
