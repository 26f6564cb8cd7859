"""The Task protocol."""

from __future__ import annotations

from fake_install import FakeSite

NAMES = {
    "about", "build_student", "build_teacher", "collate", "data", "evaluate", "metric", "student_adaptor",
    "teacher_adaptor", "teacher_fit",
}  # fmt: skip


def test_the_protocol_asks_for_these_names_and_imports_no_torch(fake_site: FakeSite) -> None:
    code = f"""
        import sys
        from kdplug import Task
        print({{name for name in vars(Task) if not name.startswith("_")}} == {NAMES}, "torch" in sys.modules)
    """
    assert fake_site.prints(code) == "True False"
