// This file answers: do registration entries behave as SPIRE's, both for the
// operator who writes them and for the node that is to serve them?
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

func unixSelector(uid int) []*types.Selector {
	return []*types.Selector{{Type: "unix", Value: fmt.Sprintf("uid:%d", uid)}}
}

// agentMask is what a SPIRE agent asks for when it syncs.
func agentMask() *types.EntryMask {
	return &types.EntryMask{
		SpiffeId: true, Selectors: true, FederatesWith: true, Admin: true, Downstream: true, RevisionNumber: true,
		StoreSvid: true, Hint: true, CreatedAt: true, AdditionalAttributes: true,
	}
}

func (s *suite) bundleChecks(ctx context.Context) {
	judge := func(c *check, bundle *types.Bundle) {
		equal(c, "trust domain", bundle.GetTrustDomain(), s.server.domain.Name())
		for _, trusted := range s.server.bundle.X509Authorities() {
			c.that(slices.ContainsFunc(bundle.GetX509Authorities(), func(a *types.X509Certificate) bool {
				return slices.Equal(a.GetAsn1(), trusted.Raw)
			}), "the bundle lacks an authority of the PEM file")
		}
		c.that(len(bundle.GetJwtAuthorities()) > 0, "the bundle has no JWT authority")
		for _, authority := range bundle.GetJwtAuthorities() {
			c.that(authority.GetKeyId() != "", "a JWT authority has no key ID")
			c.that(authority.GetExpiresAt() > time.Now().Unix(), "a JWT authority expires at %d", authority.GetExpiresAt())
		}
	}
	s.check(ctx, "get-bundle-as-operator", func(c *check) {
		bundle, err := s.admin.bundles.GetBundle(c.ctx, &bundlev1.GetBundleRequest{})
		c.ok(err, "get")
		judge(c, bundle)
	})
	s.check(ctx, "get-bundle-without-certificate", func(c *check) {
		conn, err := s.server.anonymous()
		c.ok(err, "dial")
		defer conn.Close()
		bundle, err := newClient(conn).bundles.GetBundle(c.ctx, &bundlev1.GetBundleRequest{})
		c.ok(err, "get")
		judge(c, bundle)
	})
	s.check(ctx, "get-bundle-masked", func(c *check) {
		bundle, err := s.admin.bundles.GetBundle(c.ctx, &bundlev1.GetBundleRequest{OutputMask: &types.BundleMask{JwtAuthorities: true}})
		c.ok(err, "get")
		equal(c, "trust domain", bundle.GetTrustDomain(), s.server.domain.Name())
		equal(c, "X.509 authorities", len(bundle.GetX509Authorities()), 0)
		c.that(len(bundle.GetJwtAuthorities()) > 0, "the bundle has no JWT authority")
	})
}

func (s *suite) entryAdminChecks(ctx context.Context) {
	s.check(ctx, "create-entry-keeps-every-field", func(c *check) {
		needs(c, s.node)
		sent := []*types.Entry{{
			ParentId:    protoID(s.node.svid.ID),
			SpiffeId:    protoID(s.path("every-field")),
			Selectors:   []*types.Selector{{Type: "unix", Value: "uid:1"}, {Type: "unix", Value: "gid:1"}},
			X509SvidTtl: 601, JwtSvidTtl: 61, Admin: true, Downstream: true,
			ExpiresAt: time.Now().Add(time.Hour).Unix(), DnsNames: []string{"one.example.org", "two.example.org"},
			Hint:                 "internal",
			AdditionalAttributes: &types.Entry_AdditionalAttributes{DisableX509SvidPrefetch: true, JwtSvidIncludeJti: true},
		}, {
			ParentId: protoID(s.node.svid.ID), SpiffeId: protoID(s.path("stored")), Selectors: unixSelector(1), StoreSvid: true,
		}}
		for i, stored := range s.create(c, sent...) {
			c.that(stored.GetCreatedAt() > time.Now().Add(-time.Minute).Unix(), "created at %d", stored.GetCreatedAt())
			sameEntry(c, "the created entry", stored, sent[i])
			got, err := s.admin.entries.GetEntry(c.ctx, &entryv1.GetEntryRequest{Id: stored.GetId()})
			c.ok(err, "get")
			sameEntry(c, "the entry as got", got, sent[i])
			equal(c, "ID", got.GetId(), stored.GetId())
			equal(c, "creation time", got.GetCreatedAt(), stored.GetCreatedAt())
		}
	})
	s.check(ctx, "create-entry-with-chosen-id", func(c *check) {
		needs(c, s.node)
		stored := s.create(c, &types.Entry{
			Id: "chosen-" + s.mark, ParentId: protoID(s.node.svid.ID), SpiffeId: protoID(s.path("chosen")), Selectors: unixSelector(2),
		})[0]
		equal(c, "ID", stored.GetId(), "chosen-"+s.mark)
	})
	s.check(ctx, "create-entry-that-exists-returns-it", func(c *check) {
		needs(c, s.node)
		entry := &types.Entry{ParentId: protoID(s.node.svid.ID), SpiffeId: protoID(s.path("twice")), Selectors: unixSelector(3), Hint: "first"}
		stored := s.create(c, entry)[0]
		again := proto.CloneOf(entry)
		again.Hint = "second"
		response, err := s.admin.entries.BatchCreateEntry(c.ctx, &entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{again}})
		c.ok(err, "create again")
		equal(c, "results", len(response.GetResults()), 1)
		c.status(response.GetResults()[0].GetStatus(), codes.AlreadyExists, "create again")
		c.that(proto.Equal(response.GetResults()[0].GetEntry(), stored), "got %v, first created %v", response.GetResults()[0].GetEntry(), stored)
	})
	s.check(ctx, "create-entries-answers-by-position", func(c *check) {
		needs(c, s.node)
		parent := protoID(s.node.svid.ID)
		id := func(name string) *types.SPIFFEID { return protoID(s.path(name)) }
		long := make([]byte, 1025)
		for i := range long {
			long[i] = 'h'
		}
		items := []struct {
			entry *types.Entry
			want  codes.Code
		}{
			{&types.Entry{ParentId: parent, SpiffeId: id("good-1"), Selectors: unixSelector(4)}, codes.OK},
			{&types.Entry{ParentId: parent, SpiffeId: &types.SPIFFEID{TrustDomain: "other.test", Path: "/x"}, Selectors: unixSelector(4)}, codes.InvalidArgument},
			{&types.Entry{ParentId: &types.SPIFFEID{TrustDomain: "other.test", Path: "/x"}, SpiffeId: id("bad"), Selectors: unixSelector(4)}, codes.InvalidArgument},
			{&types.Entry{ParentId: parent, SpiffeId: id("bad")}, codes.InvalidArgument},
			{&types.Entry{ParentId: parent, SpiffeId: &types.SPIFFEID{TrustDomain: s.server.domain.Name()}, Selectors: unixSelector(4)}, codes.InvalidArgument},
			{&types.Entry{ParentId: parent, SpiffeId: id("bad"), Selectors: []*types.Selector{{Type: "unix"}}}, codes.InvalidArgument},
			{&types.Entry{ParentId: parent, SpiffeId: id("bad"), Selectors: []*types.Selector{{Value: "uid:1"}}}, codes.InvalidArgument},
			{&types.Entry{ParentId: parent, SpiffeId: id("bad"), Selectors: []*types.Selector{{Type: "un:ix", Value: "uid:1"}}}, codes.InvalidArgument},
			{&types.Entry{ParentId: parent, SpiffeId: id("bad"), Selectors: unixSelector(4), Hint: string(long)}, codes.InvalidArgument},
			{&types.Entry{ParentId: parent, SpiffeId: id("bad"), Selectors: unixSelector(4), DnsNames: []string{"a.*.example.org"}}, codes.InvalidArgument},
			{&types.Entry{SpiffeId: id("bad"), Selectors: unixSelector(4)}, codes.InvalidArgument},
			{&types.Entry{ParentId: parent, SpiffeId: id("good-2"), Selectors: unixSelector(4)}, codes.OK},
		}
		request := &entryv1.BatchCreateEntryRequest{OutputMask: &types.EntryMask{SpiffeId: true}}
		for _, item := range items {
			request.Entries = append(request.Entries, item.entry)
		}
		response, err := s.admin.entries.BatchCreateEntry(c.ctx, request)
		c.ok(err, "create")
		equal(c, "results", len(response.GetResults()), len(items))
		for i, result := range response.GetResults() {
			if result.GetEntry().GetId() != "" {
				s.created = append(s.created, result.GetEntry().GetId())
			}
			c.status(result.GetStatus(), items[i].want, fmt.Sprintf("item %d", i))
			if items[i].want != codes.OK {
				c.that(result.GetEntry() == nil, "item %d carries an entry", i)
				continue
			}
			equal(c, fmt.Sprintf("ID of item %d", i), idString(result.GetEntry().GetSpiffeId()), idString(items[i].entry.GetSpiffeId()))
			c.that(result.GetEntry().GetParentId() == nil, "item %d carries a parent ID that was masked", i)
		}
	})
	s.check(ctx, "create-entry-federating-with-an-unknown-domain-is-refused", func(c *check) {
		needs(c, s.node)
		response, err := s.admin.entries.BatchCreateEntry(c.ctx, &entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{{
			ParentId: protoID(s.node.svid.ID), SpiffeId: protoID(s.path("federated")), Selectors: unixSelector(5),
			FederatesWith: []string{"unknown-" + s.mark + ".test"},
		}}})
		c.ok(err, "create")
		equal(c, "results", len(response.GetResults()), 1)
		c.that(response.GetResults()[0].GetStatus().GetCode() != int32(codes.OK), "the entry was created")
	})
	s.listEntryChecks(ctx)
	s.changeEntryChecks(ctx)
}

// sameEntry compares what an operator sets.
func sameEntry(c *check, what string, got, want *types.Entry) {
	got, want = proto.CloneOf(got), proto.CloneOf(want)
	for _, entry := range []*types.Entry{got, want} {
		entry.Id, entry.RevisionNumber, entry.CreatedAt = "", 0, 0
		slices.SortFunc(entry.Selectors, compareSelectors)
	}
	c.that(proto.Equal(got, want), "%s: expected %v, got %v", what, want, got)
}

func compareSelectors(a, b *types.Selector) int {
	x, y := a.GetType()+":"+a.GetValue(), b.GetType()+":"+b.GetValue()
	switch {
	case x < y:
		return -1
	case x > y:
		return 1
	}
	return 0
}

func (s *suite) listEntryChecks(ctx context.Context) {
	parent := s.path("list-parent")
	selectors := func(values ...string) []*types.Selector {
		var set []*types.Selector
		for _, value := range values {
			set = append(set, &types.Selector{Type: "list-" + s.mark, Value: value})
		}
		return set
	}
	entry := func(name, hint string, values ...string) *types.Entry {
		return &types.Entry{ParentId: protoID(parent), SpiffeId: protoID(s.path(name)), Hint: hint, Selectors: selectors(values...)}
	}
	made := false
	s.check(ctx, "list-entries-in-pages", func(c *check) {
		s.create(c,
			entry("list-1", "", "a"),
			entry("list-2", "", "a", "b"),
			entry("list-3", "marked-"+s.mark, "a", "b", "c"),
			entry("list-4", "", "c"),
			entry("list-5", "", "d"))
		made = true
		for _, size := range []int32{0, 1, 2, 5, 100} {
			seen := s.listEntries(c, &entryv1.ListEntriesRequest{
				Filter: &entryv1.ListEntriesRequest_Filter{ByParentId: protoID(parent)}, PageSize: size,
			})
			equal(c, fmt.Sprintf("entries listed in pages of %d", size), fmt.Sprint(seen), "[list-1 list-2 list-3 list-4 list-5]")
		}
	})
	match := func(how types.SelectorMatch_MatchBehavior, values ...string) *entryv1.ListEntriesRequest_Filter {
		return &entryv1.ListEntriesRequest_Filter{BySelectors: &types.SelectorMatch{Selectors: selectors(values...), Match: how}}
	}
	both := match(types.SelectorMatch_MATCH_SUBSET, "a", "b")
	both.BySpiffeId = protoID(s.path("list-2"))
	for _, t := range []struct {
		name   string
		filter *entryv1.ListEntriesRequest_Filter
		want   string
	}{
		{"spiffe-id", &entryv1.ListEntriesRequest_Filter{BySpiffeId: protoID(s.path("list-4"))}, "[list-4]"},
		{"hint", &entryv1.ListEntriesRequest_Filter{ByHint: wrapperspb.String("marked-" + s.mark)}, "[list-3]"},
		{"exact-selectors", match(types.SelectorMatch_MATCH_EXACT, "a", "b"), "[list-2]"},
		{"subset-of-selectors", match(types.SelectorMatch_MATCH_SUBSET, "a", "b"), "[list-1 list-2]"},
		{"superset-of-selectors", match(types.SelectorMatch_MATCH_SUPERSET, "a", "b"), "[list-2 list-3]"},
		{"any-selector", match(types.SelectorMatch_MATCH_ANY, "b", "c"), "[list-2 list-3 list-4]"},
		{"selectors-and-spiffe-id", both, "[list-2]"},
	} {
		s.check(ctx, "list-and-count-entries-by-"+t.name, func(c *check) {
			c.that(made, "an earlier check that this one builds on failed")
			for _, size := range []int32{0, 1} {
				seen := s.listEntries(c, &entryv1.ListEntriesRequest{Filter: t.filter, PageSize: size})
				equal(c, "entries", fmt.Sprint(seen), t.want)
			}
			count, err := s.admin.entries.CountEntries(c.ctx, &entryv1.CountEntriesRequest{Filter: &entryv1.CountEntriesRequest_Filter{
				BySpiffeId: t.filter.BySpiffeId, ByParentId: t.filter.ByParentId, BySelectors: t.filter.BySelectors, ByHint: t.filter.ByHint,
			}})
			c.ok(err, "count")
			listed := s.listEntries(c, &entryv1.ListEntriesRequest{Filter: t.filter})
			equal(c, "count", int(count.GetCount()), len(listed))
		})
	}
	s.check(ctx, "list-entries-masked", func(c *check) {
		c.that(made, "an earlier check that this one builds on failed")
		response, err := s.admin.entries.ListEntries(c.ctx, &entryv1.ListEntriesRequest{
			Filter:     &entryv1.ListEntriesRequest_Filter{BySpiffeId: protoID(s.path("list-3"))},
			OutputMask: &types.EntryMask{SpiffeId: true},
		})
		c.ok(err, "list")
		equal(c, "entries", len(response.GetEntries()), 1)
		got := response.GetEntries()[0]
		c.that(proto.Equal(got, &types.Entry{Id: got.GetId(), SpiffeId: protoID(s.path("list-3"))}), "more than ID and SPIFFE ID: %v", got)
		c.that(got.GetId() != "", "no ID")
	})
	s.check(ctx, "list-entries-refuses-malformed-filters", func(c *check) {
		for i, filter := range []*entryv1.ListEntriesRequest_Filter{
			{ByParentId: &types.SPIFFEID{TrustDomain: "other.test", Path: "/x"}},
			{BySpiffeId: &types.SPIFFEID{TrustDomain: "other.test", Path: "/x"}},
			{BySelectors: &types.SelectorMatch{}},
			{BySelectors: &types.SelectorMatch{Selectors: []*types.Selector{{Type: "a"}}}},
		} {
			_, err := s.admin.entries.ListEntries(c.ctx, &entryv1.ListEntriesRequest{Filter: filter})
			c.code(err, codes.InvalidArgument, fmt.Sprintf("filter %d", i))
		}
	})
	s.check(ctx, "get-entry-that-never-was", func(c *check) {
		_, err := s.admin.entries.GetEntry(c.ctx, &entryv1.GetEntryRequest{Id: "never-" + s.mark})
		c.code(err, codes.NotFound, "get")
		_, err = s.admin.entries.GetEntry(c.ctx, &entryv1.GetEntryRequest{})
		c.code(err, codes.InvalidArgument, "get without an ID")
	})
}

// listEntries returns the last path segments of all pages, sorted.
func (s *suite) listEntries(c *check, request *entryv1.ListEntriesRequest) []string {
	request = proto.CloneOf(request)
	names := []string{}
	for {
		response, err := s.admin.entries.ListEntries(c.ctx, request)
		c.ok(err, "list entries")
		for _, entry := range response.GetEntries() {
			path := entry.GetSpiffeId().GetPath()
			names = append(names, path[len("/interop-"+s.mark+"/"):])
		}
		c.that(request.PageSize == 0 || len(response.GetEntries()) <= int(request.PageSize), "a page is larger than asked for")
		if response.GetNextPageToken() == "" {
			slices.Sort(names)
			return names
		}
		request.PageToken = response.GetNextPageToken()
	}
}

func (s *suite) changeEntryChecks(ctx context.Context) {
	var entry *types.Entry
	s.check(ctx, "update-entry-touches-only-the-mask", func(c *check) {
		needs(c, s.node)
		entry = s.create(c, &types.Entry{
			ParentId: protoID(s.node.svid.ID), SpiffeId: protoID(s.path("updated")), Selectors: unixSelector(6), X509SvidTtl: 600, Hint: "before",
		})[0]
		response, err := s.admin.entries.BatchUpdateEntry(c.ctx, &entryv1.BatchUpdateEntryRequest{
			Entries:   []*types.Entry{{Id: entry.GetId(), Hint: "after", X509SvidTtl: 7}},
			InputMask: &types.EntryMask{Hint: true},
		})
		c.ok(err, "update")
		equal(c, "results", len(response.GetResults()), 1)
		c.status(response.GetResults()[0].GetStatus(), codes.OK, "update")
		got := response.GetResults()[0].GetEntry()
		want := proto.CloneOf(entry)
		want.Hint = "after"
		sameEntry(c, "the updated entry", got, want)
		equal(c, "ID", got.GetId(), entry.GetId())
		c.that(got.GetRevisionNumber() > entry.GetRevisionNumber(), "revision number went from %d to %d", entry.GetRevisionNumber(), got.GetRevisionNumber())
		equal(c, "creation time", got.GetCreatedAt(), entry.GetCreatedAt())
	})
	s.check(ctx, "update-entry-without-mask-replaces-every-field", func(c *check) {
		needs(c, entry)
		want := &types.Entry{Id: entry.GetId(), ParentId: entry.GetParentId(), SpiffeId: entry.GetSpiffeId(), Selectors: unixSelector(60), JwtSvidTtl: 33}
		response, err := s.admin.entries.BatchUpdateEntry(c.ctx, &entryv1.BatchUpdateEntryRequest{Entries: []*types.Entry{want}})
		c.ok(err, "update")
		c.status(response.GetResults()[0].GetStatus(), codes.OK, "update")
		sameEntry(c, "the updated entry", response.GetResults()[0].GetEntry(), want)
	})
	s.check(ctx, "update-entries-answers-by-position", func(c *check) {
		needs(c, entry)
		response, err := s.admin.entries.BatchUpdateEntry(c.ctx, &entryv1.BatchUpdateEntryRequest{
			Entries: []*types.Entry{
				{Id: "never-" + s.mark, Selectors: unixSelector(6)},
				{Id: entry.GetId()},
				{Id: entry.GetId(), Selectors: unixSelector(61)},
			},
			InputMask:  &types.EntryMask{Selectors: true},
			OutputMask: &types.EntryMask{},
		})
		c.ok(err, "update")
		equal(c, "results", len(response.GetResults()), 3)
		for i, want := range []codes.Code{codes.NotFound, codes.InvalidArgument, codes.OK} {
			c.status(response.GetResults()[i].GetStatus(), want, fmt.Sprintf("item %d", i))
		}
	})
	s.check(ctx, "delete-entries-answers-by-position", func(c *check) {
		needs(c, entry)
		response, err := s.admin.entries.BatchDeleteEntry(c.ctx, &entryv1.BatchDeleteEntryRequest{
			Ids: []string{"", entry.GetId(), "never-" + s.mark, entry.GetId()},
		})
		c.ok(err, "delete")
		equal(c, "results", len(response.GetResults()), 4)
		for i, want := range []codes.Code{codes.InvalidArgument, codes.OK, codes.NotFound, codes.NotFound} {
			c.status(response.GetResults()[i].GetStatus(), want, fmt.Sprintf("item %d", i))
		}
		equal(c, "ID of item 1", response.GetResults()[1].GetId(), entry.GetId())
		_, err = s.admin.entries.GetEntry(c.ctx, &entryv1.GetEntryRequest{Id: entry.GetId()})
		c.code(err, codes.NotFound, "get")
	})
}

// authorized is what a node may serve, by SPIFFE ID.
func (s *suite) authorized(c *check, node *session) map[string]*types.Entry {
	response, err := node.entries.GetAuthorizedEntries(c.ctx, &entryv1.GetAuthorizedEntriesRequest{})
	c.ok(err, "get authorized entries")
	return byID(c, response.GetEntries())
}

func byID(c *check, entries []*types.Entry) map[string]*types.Entry {
	have := map[string]*types.Entry{}
	for _, entry := range entries {
		id := idString(entry.GetSpiffeId())
		c.that(have[id] == nil, "%s is listed twice", id)
		have[id] = entry
	}
	return have
}

// lacks names the first wanted SPIFFE ID that is not there.
func lacks(have map[string]*types.Entry, wanted ...string) string {
	for _, id := range wanted {
		if have[id] == nil {
			return id + " is not authorized"
		}
	}
	return ""
}

func (s *suite) authorizedChecks(ctx context.Context) {
	s.check(ctx, "new-entry-reaches-its-node-and-no-other", func(c *check) {
		needs(c, s.node)
		needs(c, s.other)
		entries := s.create(c,
			&types.Entry{
				ParentId: protoID(s.node.svid.ID), SpiffeId: protoID(s.path("web")), Selectors: unixSelector(10),
				X509SvidTtl: 600, JwtSvidTtl: 120, DnsNames: []string{"web.example.org"}, Hint: "web",
			},
			&types.Entry{
				ParentId: protoID(s.node.svid.ID), SpiffeId: protoID(s.path("tokens")), Selectors: unixSelector(11),
				AdditionalAttributes: &types.Entry_AdditionalAttributes{JwtSvidIncludeJti: true},
			},
			&types.Entry{ParentId: protoID(s.other.svid.ID), SpiffeId: protoID(s.path("foreign")), Selectors: unixSelector(12)})
		s.eventually(c, func() string {
			return lacks(s.authorized(c, s.node), s.path("web").String(), s.path("tokens").String())
		})
		s.eventually(c, func() string {
			return lacks(s.authorized(c, s.other), s.path("foreign").String())
		})
		c.that(lacks(s.authorized(c, s.node), s.path("foreign").String()) != "", "a node got an entry of another one")
		c.that(lacks(s.authorized(c, s.other), s.path("web").String()) != "", "a node got an entry of another one")
		c.that(proto.Equal(s.authorized(c, s.node)[s.path("web").String()], entries[0]), "the authorized entry differs from the created one")
		s.web, s.tokens, s.foreign = entries[0], entries[1], entries[2]
	})
	s.check(ctx, "authorized-entries-masked", func(c *check) {
		needs(c, s.web)
		response, err := s.node.entries.GetAuthorizedEntries(c.ctx, &entryv1.GetAuthorizedEntriesRequest{OutputMask: agentMask()})
		c.ok(err, "get")
		got := byID(c, response.GetEntries())[s.path("web").String()]
		c.that(got != nil, "the entry is not authorized")
		equal(c, "ID", got.GetId(), s.web.GetId())
		equal(c, "hint", got.GetHint(), "web")
		equal(c, "revision number", got.GetRevisionNumber(), s.web.GetRevisionNumber())
		equal(c, "creation time", got.GetCreatedAt(), s.web.GetCreatedAt())
		c.that(got.GetParentId() == nil && got.GetX509SvidTtl() == 0 && len(got.GetDnsNames()) == 0, "masked fields are there: %v", got)
	})
	s.check(ctx, "entry-under-an-entry-is-authorized", func(c *check) {
		needs(c, s.web)
		s.create(c,
			&types.Entry{ParentId: s.web.GetSpiffeId(), SpiffeId: protoID(s.path("child")), Selectors: unixSelector(13)},
			&types.Entry{ParentId: protoID(s.path("child")), SpiffeId: protoID(s.path("grandchild")), Selectors: unixSelector(14)})
		s.eventually(c, func() string {
			return lacks(s.authorized(c, s.node), s.path("child").String(), s.path("grandchild").String())
		})
	})
	s.check(ctx, "join-token-alias-brings-its-entries", func(c *check) {
		alias := s.path("token-alias")
		s.create(c, &types.Entry{ParentId: protoID(alias), SpiffeId: protoID(s.path("under-token-alias")), Selectors: unixSelector(15)})
		node := s.enter(c, protoID(alias))
		defer node.conn.Close()
		s.eventually(c, func() string {
			return lacks(s.authorized(c, node), s.path("under-token-alias").String())
		})
		needs(c, s.other)
		c.that(lacks(s.authorized(c, s.other), s.path("under-token-alias").String()) != "", "a node without the alias got its entry")
	})
	s.check(ctx, "changed-entry-reaches-its-node", func(c *check) {
		needs(c, s.web)
		response, err := s.admin.entries.BatchUpdateEntry(c.ctx, &entryv1.BatchUpdateEntryRequest{
			Entries:   []*types.Entry{{Id: s.web.GetId(), Hint: "web-2"}},
			InputMask: &types.EntryMask{Hint: true},
		})
		c.ok(err, "update")
		c.status(response.GetResults()[0].GetStatus(), codes.OK, "update")
		s.eventually(c, func() string {
			got := s.authorized(c, s.node)[s.path("web").String()]
			if got.GetHint() != "web-2" {
				return fmt.Sprintf("the hint is still %q", got.GetHint())
			}
			c.that(got.GetRevisionNumber() > s.web.GetRevisionNumber(), "the revision number did not grow")
			return ""
		})
		s.web = response.GetResults()[0].GetEntry()
	})
	s.check(ctx, "deleted-entry-leaves-its-node", func(c *check) {
		needs(c, s.node)
		gone := s.create(c, &types.Entry{ParentId: protoID(s.node.svid.ID), SpiffeId: protoID(s.path("gone")), Selectors: unixSelector(16)})[0]
		s.eventually(c, func() string { return lacks(s.authorized(c, s.node), s.path("gone").String()) })
		_, err := s.admin.entries.BatchDeleteEntry(c.ctx, &entryv1.BatchDeleteEntryRequest{Ids: []string{gone.GetId()}})
		c.ok(err, "delete")
		s.eventually(c, func() string {
			if s.authorized(c, s.node)[s.path("gone").String()] != nil {
				return "the entry is still authorized"
			}
			return ""
		})
	})
}

func (s *suite) syncChecks(ctx context.Context) {
	s.check(ctx, "sync-of-few-entries-is-one-message", func(c *check) {
		needs(c, s.web)
		stream, err := s.node.entries.SyncAuthorizedEntries(c.ctx)
		c.ok(err, "open")
		c.ok(stream.Send(&entryv1.SyncAuthorizedEntriesRequest{OutputMask: agentMask()}), "send")
		response, err := stream.Recv()
		c.ok(err, "receive")
		equal(c, "entry revisions", len(response.GetEntryRevisions()), 0)
		equal(c, "more", response.GetMore(), false)
		direct, err := s.node.entries.GetAuthorizedEntries(c.ctx, &entryv1.GetAuthorizedEntriesRequest{OutputMask: agentMask()})
		c.ok(err, "get authorized entries")
		want := byID(c, direct.GetEntries())
		got := byID(c, response.GetEntries())
		equal(c, "entries", len(got), len(want))
		for id, entry := range want {
			c.that(proto.Equal(got[id], entry), "%s: synced %v, got directly %v", id, got[id], entry)
		}
		_, err = stream.Recv()
		c.that(errors.Is(err, io.EOF), "the stream goes on: %v", err)
	})
	s.check(ctx, "sync-of-no-entries-is-one-empty-message", func(c *check) {
		node := s.enter(c, nil)
		defer node.conn.Close()
		stream, err := node.entries.SyncAuthorizedEntries(c.ctx)
		c.ok(err, "open")
		c.ok(stream.Send(&entryv1.SyncAuthorizedEntriesRequest{OutputMask: agentMask()}), "send")
		response, err := stream.Recv()
		c.ok(err, "receive")
		c.that(proto.Equal(response, &entryv1.SyncAuthorizedEntriesResponse{}), "got %v", response)
		_, err = stream.Recv()
		c.that(errors.Is(err, io.EOF), "the stream goes on: %v", err)
	})
	s.check(ctx, "sync-refuses-ids-at-first", func(c *check) {
		needs(c, s.web)
		c.code(s.syncFirst(c, &entryv1.SyncAuthorizedEntriesRequest{OutputMask: agentMask(), Ids: []string{s.web.GetId()}}), codes.InvalidArgument, "sync")
	})
	s.check(ctx, "sync-refuses-to-mask-the-revision", func(c *check) {
		needs(c, s.web)
		mask := agentMask()
		mask.RevisionNumber = false
		c.code(s.syncFirst(c, &entryv1.SyncAuthorizedEntriesRequest{OutputMask: mask}), codes.InvalidArgument, "sync")
		c.ok(s.syncFirst(c, &entryv1.SyncAuthorizedEntriesRequest{}), "sync without a mask")
	})
	s.check(ctx, "sync-of-many-entries-pages-revisions-then-entries", s.syncMany)
}

// syncFirst sends one request and returns the fate of the first answer.
func (s *suite) syncFirst(c *check, request *entryv1.SyncAuthorizedEntriesRequest) error {
	stream, err := s.node.entries.SyncAuthorizedEntries(c.ctx)
	c.ok(err, "open")
	_ = stream.Send(request)
	_, err = stream.Recv()
	return err
}

func (s *suite) syncMany(c *check) {
	const many = 1050 // two full pages of SPIRE's 500 and a rest
	node := s.enter(c, nil)
	defer node.conn.Close()
	var entries []*types.Entry
	for i := range many {
		entries = append(entries, &types.Entry{
			ParentId: protoID(node.svid.ID), SpiffeId: protoID(s.path(fmt.Sprintf("many-%d", i))), Selectors: unixSelector(1000 + i),
		})
	}
	stored := map[string]*types.Entry{}
	for _, entry := range s.create(c, entries...) {
		stored[entry.GetId()] = entry
	}
	s.eventually(c, func() string {
		if n := len(s.authorized(c, node)); n != many {
			return fmt.Sprintf("%d of %d entries are authorized", n, many)
		}
		return ""
	})

	ctx, cancel := context.WithCancel(metadata.NewOutgoingContext(c.ctx, nil))
	defer cancel()
	stream, err := node.entries.SyncAuthorizedEntries(ctx)
	c.ok(err, "open")
	c.ok(stream.Send(&entryv1.SyncAuthorizedEntriesRequest{OutputMask: agentMask()}), "send")
	pageSize := 0
	var ids []string
	for more := true; more; {
		response, err := stream.Recv()
		c.ok(err, "receive revisions")
		equal(c, "entries among the revisions", len(response.GetEntries()), 0)
		more = response.GetMore()
		n := len(response.GetEntryRevisions())
		if pageSize == 0 {
			pageSize = n
		}
		c.that(n > 0 && n <= pageSize && (!more || n == pageSize), "a page of %d revisions after one of %d, more: %t", n, pageSize, more)
		for _, revision := range response.GetEntryRevisions() {
			entry := stored[revision.GetId()]
			c.that(entry != nil, "revision of unknown entry %q", revision.GetId())
			equal(c, "revision number", revision.GetRevisionNumber(), entry.GetRevisionNumber())
			equal(c, "creation time", revision.GetCreatedAt(), entry.GetCreatedAt())
			ids = append(ids, revision.GetId())
		}
	}
	slices.Sort(ids)
	equal(c, "distinct revisions", len(slices.Compact(ids)), many)
	c.that(pageSize < many, "all %d revisions came in one page", many)

	fetch := func(what string, asked []string, want int) {
		c.ok(stream.Send(&entryv1.SyncAuthorizedEntriesRequest{Ids: asked}), "send IDs")
		got := map[string]bool{}
		for more := true; more; {
			response, err := stream.Recv()
			c.ok(err, "receive "+what)
			equal(c, "revisions among the entries", len(response.GetEntryRevisions()), 0)
			more = response.GetMore()
			n := len(response.GetEntries())
			c.that(n <= pageSize && (!more || n == pageSize), "%s: a page of %d entries, page size %d, more: %t", what, n, pageSize, more)
			for _, entry := range response.GetEntries() {
				c.that(!got[entry.GetId()], "%s: entry %s came twice", what, entry.GetId())
				got[entry.GetId()] = true
				want := stored[entry.GetId()]
				c.that(want != nil, "%s: unknown entry %q", what, entry.GetId())
				equal(c, what+": SPIFFE ID", idString(entry.GetSpiffeId()), idString(want.GetSpiffeId()))
				c.that(entry.GetParentId() == nil, "%s: the mask of the first request is not kept", what)
			}
		}
		equal(c, what+": entries", len(got), want)
	}
	fetch("one entry", ids[:1], 1)
	fetch("no known entry", []string{"never-" + s.mark}, 0)
	fetch("some known entries", append([]string{"never-" + s.mark}, ids[10:20]...), 10)
	fetch("a full page", ids[:pageSize], pageSize)
	fetch("all entries at once", ids, many)
	backwards := slices.Clone(ids[:50])
	slices.Reverse(backwards)
	fetch("unsorted IDs", backwards, 50)
	c.ok(stream.CloseSend(), "close")
	_, err = stream.Recv()
	c.that(errors.Is(err, io.EOF), "the stream does not end well: %v", err)

	_, err = s.admin.agents.DeleteAgent(c.ctx, &agentv1.DeleteAgentRequest{Id: protoID(node.svid.ID)})
	c.ok(err, "delete agent")
}
