"""Users, and the email that greets them."""

from datetime import UTC, datetime
from uuid import UUID, uuid4

from fastapi import APIRouter, BackgroundTasks, HTTPException
from pydantic import BaseModel, EmailStr
from sqlalchemy.exc import IntegrityError

from ..db import User
from ..tasks.emails import send_welcome_email
from .deps import Ctx, Line, Session

router = APIRouter(tags=["users"])


class UserRequest(BaseModel):
    """A user to add."""

    email: EmailStr
    name: Line


class UserInfo(UserRequest):
    """A user."""

    id: UUID


@router.post("/users", status_code=201, response_model=UserInfo)
async def add_user(
    body: UserRequest, session: Session, ctx: Ctx, background_tasks: BackgroundTasks
) -> User:
    """Add a user, and greet them by email; that needs no queue, for it may be lost."""
    user = User(email=body.email, name=body.name)
    session.add(user)
    try:
        await session.commit()
    except IntegrityError as error:
        raise HTTPException(409, "There is a user with this email.") from error
    ctx = {**ctx, "job_id": uuid4().hex, "job_try": 1, "enqueue_time": datetime.now(UTC)}
    background_tasks.add_task(send_welcome_email, ctx, user_id=user.id)
    return user
